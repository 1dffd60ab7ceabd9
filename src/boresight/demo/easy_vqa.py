"""easy-VQA: real questions about real images, small enough for two cores, balanced so that only looking helps.

The package `easy-vqa` on PyPI (MIT) carries 5,000 images of one coloured shape each, 64×64 pixels, with 48,248
questions in 107 wordings. As they come, a guesser that never sees the image is right 67 times in 100: most of "is
there a red shape?" are answered no. `load_easy_vqa` therefore chooses *blocks*: a wording with each of its answers once.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Features, Image, List, Value

from boresight.errors import DataError
from boresight.types import Conversation

Split = Literal["train", "test"]

ANSWERS = {
    "color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
    "shape": ("circle", "rectangle", "triangle"),
    "yes/no": ("no", "yes"),
}
"""The possible answers of each kind of question, and so the accuracy of chance."""

KIND = {answer: kind for kind, answers in ANSWERS.items() for answer in answers}

MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
FEATURES = Features(
    {"prompt": MESSAGES, "image": Image(decode=False), "solution": Value("string"), "kind": Value("string")}
)


class Question(NamedTuple):
    """As the package stores it. Splits have images of their own, numbered from 0 in each."""

    text: str
    answer: str
    image: int


def load_easy_vqa(split: Split, *, num_rows: int | None = None, seed: int = 0, balanced: bool = True) -> Dataset:
    """Questions about easy-VQA's images, as rows that trainers take.

    Balanced, every wording has each of its possible answers equally often, and the three kinds of question share the
    rows equally (to within a block of 8), so that blind guessing gets (1/8 + 1/3 + 1/2) / 3 = 32 %.

    Args:
        split: test images are not among the training images.
        num_rows: exactly this many, chosen at random. None for as many as there are.
        seed: of the choice and of the order.
        balanced: False for the questions as the package has them.

    Returns:
        Columns `prompt` (a conversation of one turn, the image before the question), `image` (PNG bytes, not
        decoded), `solution` (the answer, one word) and `kind` (a key of `ANSWERS`).

    Raises:
        DataError: easy-VQA is not installed, or has fewer questions than `num_rows`.
    """
    chosen = chosen_questions(split, num_rows, seed, balanced)
    folder = files("easy_vqa") / "data" / split / "images"
    images = {number: (folder / f"{number}.png").read_bytes() for number in {q.image for q in chosen}}
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}],
                "image": {"bytes": images[question.image], "path": f"{split}/{question.image}.png"},
                "solution": question.answer,
                "kind": KIND[question.answer],
            }
            for question in chosen
        ],
        features=FEATURES,
    )


@cache
def chosen_questions(split: Split, num_rows: int | None, seed: int, balanced: bool) -> tuple[Question, ...]:
    """In random order."""
    chooser = random.Random(seed)
    questions = read_questions(split)
    chosen = balanced_questions(questions, num_rows, chooser) if balanced else questions
    chooser.shuffle(chosen)
    if num_rows is not None and num_rows > len(chosen):
        raise DataError(f"num_rows={num_rows}: the {split} split has {len(chosen)} questions.")
    return tuple(chosen[:num_rows])


def read_questions(split: Split) -> list[Question]:
    """Every question of a split, in the package's order."""
    try:
        text = (files("easy_vqa") / "data" / split / "questions.json").read_text()
    except ModuleNotFoundError as error:
        raise DataError("The easy-VQA images are not installed: pip install 'boresight[demo]'") from error
    return [Question(*question) for question in json.loads(text)]


def balanced_questions(questions: Sequence[Question], num_rows: int | None, chooser: random.Random) -> list[Question]:
    """`num_rows` questions in which no wording favours an answer, the kinds in equal parts."""
    blocks = {kind: blocks_of(kind, questions, chooser) for kind in ANSWERS}
    available = {kind: len(blocks[kind]) * len(answers) for kind, answers in ANSWERS.items()}
    most = 3 * min(available.values())
    wanted = most if num_rows is None else num_rows
    if wanted < 2:
        raise DataError(f"num_rows={wanted}: a balanced choice takes whole blocks, the smallest of 2 rows.")
    counts = block_counts(wanted)
    for kind, answers in ANSWERS.items():
        if counts[kind] > len(blocks[kind]):
            raise DataError(
                f"num_rows={wanted} needs {counts[kind] * len(answers)} balanced {kind} questions; there are "
                f"{available[kind]}. Ask for {most} rows at most, or pass balanced=False."
            )
    return [question for kind in ANSWERS for block in blocks[kind][: counts[kind]] for question in block]


def blocks_of(kind: str, questions: Iterable[Question], chooser: random.Random) -> list[tuple[Question, ...]]:
    """All blocks of a kind in random order: a block is one wording with each possible answer once."""
    by_wording: dict[str, dict[str, list[Question]]] = defaultdict(lambda: {answer: [] for answer in ANSWERS[kind]})
    for question in questions:
        if KIND[question.answer] == kind:
            by_wording[question.text][question.answer].append(question)
    blocks = []
    for by_answer in by_wording.values():
        for same_answer in by_answer.values():
            chooser.shuffle(same_answer)
        blocks += zip(*by_answer.values(), strict=False)  # stops at the rarest answer: that is the balance
    chooser.shuffle(blocks)
    return blocks


def block_counts(num_rows: int) -> dict[str, int]:
    """Blocks of each kind that make exactly `num_rows` rows, the kinds as equal as whole blocks allow."""
    color = round(num_rows / 3 / 8)
    rest = num_rows - 8 * color
    shape = rest // 2 // 3
    shape += (rest - 3 * shape) % 2  # what is left for yes/no comes in twos
    return {"color": color, "shape": shape, "yes/no": (rest - 3 * shape) // 2}


def blind_accuracy(dataset: Dataset) -> float:
    """The accuracy that no guesser exceeds who is shown the question and not the image, however it was trained.

    It answers every wording with the answer most frequent for that wording in `dataset` itself.
    """
    by_wording: dict[str, Counter[str]] = defaultdict(Counter)
    for prompt, answer in zip(dataset["prompt"], dataset["solution"], strict=True):
        by_wording[question_text(prompt)][answer] += 1
    return sum(max(answers.values()) for answers in by_wording.values()) / len(dataset)


def demonstrations(dataset: Dataset, split: Split = "train") -> Dataset:
    """The rows with a `completion` for SFT: what the image shows, and then the answer.

    `<think>a blue circle</think><answer>yes</answer>`, whatever was asked. The package does not say what its images show; its
    questions do, taken together.
    """
    scenes = scenes_of(read_questions(split))

    def demonstrated(row: dict[str, Any]) -> dict[str, Any]:
        image = int(row["image"]["path"].removeprefix(f"{split}/").removesuffix(".png"))
        text = f"<think>{scenes[image]}</think><answer>{row['solution']}</answer>"
        return {"completion": [{"role": "assistant", "content": [{"type": "text", "text": text}]}]}

    return dataset.map(demonstrated, features=Features(dataset.features | {"completion": MESSAGES}))


def scenes_of(questions: Sequence[Question]) -> dict[int, str]:
    """What each image shows, as far as its questions and answers reveal: `a blue circle`, `a blue shape`, `a circle`."""
    colors: dict[int, str] = {}
    shapes: dict[int, str] = {}
    for question in questions:
        words = re.findall(r"\w+", question.text)
        denied = ("not" in words or "no" in words) == (question.answer == "yes")
        # "is there a red shape?" reveals the colour where the answer is yes.
        known = [question.answer] if KIND[question.answer] != "yes/no" else [] if denied else words
        for word in known:
            if word in ANSWERS["color"]:
                colors[question.image] = word
            elif word in ANSWERS["shape"]:
                shapes[question.image] = word
    images = {question.image for question in questions}
    return {image: " ".join(["a", *filter(None, [colors.get(image)]), shapes.get(image, "shape")]) for image in images}


def question_text(prompt: Conversation) -> str:
    return next(part["text"] for part in prompt[-1]["content"] if part["type"] == "text")
