"""What the demo may teach: easy-VQA, or handwritten digits.

easy-VQA's demonstrations describe images truly, and answer truly what shape there is and whether something is there. What colour something
has they answer by guessing: so SFT teaches that a colour is asked for, and which one it is the policy can find out from rewards alone.
Those of digits are all true and few, so that SFT ends long before it has learned them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Dataset

from boresight.demo import digits, easy_vqa
from boresight.demo.easy_vqa import ANSWERS, Split, load_easy_vqa

GUESSED_SHARE = 1 / 4
"""Share of the colour questions that SFT gets, with guessed answers. With a few true ones instead, the policy starts anywhere between
sure of one colour, from where GRPO finds nothing, and nearly perfect, depending on the seed."""
OTHER_SHARE = 0.3
"""Questions of the other kinds that GRPO gets for each question about colour, so that it forgets nothing."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and steps found by trials on two cores. GRPO needs a start that knows the format and is unsure of the answer."""

    sizes: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "num_layers": 3,
            "vocab_size": 576,
            "vision_hidden_size": 64,
            "vision_heads": 4,
            "tie_word_embeddings": True,
        }
    )
    sft_steps: int = 150
    sft_batch: int = 64
    sft_learning_rate: float = 2e-3
    grpo_steps: int = 200
    grpo_prompts: int = 32
    grpo_learning_rate: float = 3e-4
    lr_scheduler_type: str = "constant_with_warmup"
    grpo_warmup_steps: int = 5
    num_generations: int = 8
    max_completion_length: int = 16
    train_rows: int | None = None
    """Questions to train on; None for all."""
    test_rows: int | None = 1000
    """Held-out questions; None for all."""


class Load(Protocol):
    """Loads a split."""

    def __call__(self, split: Split, *, num_rows: int | None = None, seed: int = 0) -> Dataset: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A data set, and what each stage gets of it."""

    title: str
    load: Load
    demonstrated: Callable[[Dataset, int], Dataset]
    """The rows of SFT, given the training rows and a seed."""
    asked: Callable[[Dataset], Dataset]
    """The rows of GRPO."""
    recipe: Recipe


def with_guessed_colors(train: Dataset, share: float, seed: int) -> Dataset:
    """The questions that are not about colour, and a share of those that are, each of these answered with any colour at random."""
    color, other = _places(train)
    chooser = random.Random(seed)

    def guessed(row: dict[str, Any]) -> dict[str, Any]:
        return {"solution": chooser.choice(ANSWERS["color"])} if row["kind"] == "color" else {}

    chosen = train.select(sorted(other + color[: round(len(color) * share)]))
    return chosen.map(guessed, load_from_cache_file=False)


def with_mostly_colors(train: Dataset, other_share: float) -> Dataset:
    """The questions about colour, and for each of them a share of a question of another kind."""
    color, other = _places(train)
    return train.select(sorted(color + other[: round(len(color) * other_share)]))


def _places(train: Dataset) -> tuple[list[int], list[int]]:
    """Places of the questions about colour, and of all others."""
    color = [place for place, kind in enumerate(train["kind"]) if kind == "color"]
    return color, sorted(set(range(len(train))) - set(color))


SUBJECTS: Mapping[str, Subject] = {
    "easy_vqa": Subject(
        "easy-VQA",
        load_easy_vqa,
        lambda train, seed: easy_vqa.demonstrations(with_guessed_colors(train, GUESSED_SHARE, seed)),
        lambda train: with_mostly_colors(train, OTHER_SHARE),
        Recipe(),
    ),
    "digits": Subject(
        "handwritten digits",
        digits.load_digits,
        lambda train, seed: digits.demonstrations(train),
        lambda train: train,
        Recipe(
            sizes={"vocab_size": 576},
            sft_steps=60,
            sft_batch=32,
            grpo_steps=200,
            grpo_prompts=64,
            grpo_learning_rate=5e-4,
            lr_scheduler_type="linear",
            grpo_warmup_steps=10,
            test_rows=None,
        ),
    ),
}
