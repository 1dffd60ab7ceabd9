"""A tiny Qwen2.5-VL, real images, and runs short enough to compare bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, TrainerCallback

from boresight import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools

from .scripted import Scripted

QUIET = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
    "seed": 7,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


def records(num_rows: int = 24) -> list[dict[str, Any]]:
    """Rows with images, every fourth without one."""
    rows = []
    for index, row in enumerate(load_easy_vqa("train", num_rows=num_rows, seed=3)):
        question = row["prompt"][0]["content"][1]["text"]
        rows.append({"prompt": [{"role": "user", "content": question}], "solution": row["solution"]})
        rows[-1]["image"] = None if index % 4 == 3 else row["image"]
    return rows


def demonstrations(num_rows: int = 24) -> list[dict[str, Any]]:
    """The same rows answered, in words of uneven number."""
    return [
        {
            "prompt": row["prompt"],
            "image": row["image"],
            "completion": [{"role": "assistant", "content": " ".join(["it is"] * (index % 3) + [row["solution"]])}],
        }
        for index, row in enumerate(records(num_rows))
    ]


def vowel_share(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that random text gets in every shade."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step, as clipping found them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({name: value.grad.clone() for name, value in named if value.grad is not None})


Run = Callable[..., Any]


def new_folder(beginning: Path) -> str:
    """A folder that no run has used: it belongs to one."""
    number = 0
    while (folder := beginning.with_name(f"{beginning.name}{number or ''}")).exists():
        number += 1
    folder.mkdir()
    return str(folder)


@pytest.fixture
def sft(model_folder: Path, tmp_path: Path) -> Run:
    """Builds an `SFTTrainer` from options."""

    def build(
        *, train_dataset: Any = None, callbacks: Any = None, eval_dataset: Any = None, **options: Any
    ) -> SFTTrainer:
        config = SFTConfig(**{"output_dir": new_folder(tmp_path / "sft"), **QUIET, **options})
        rows = demonstrations() if train_dataset is None else train_dataset
        return SFTTrainer(str(model_folder), config, rows, eval_dataset, callbacks=callbacks)

    return build


@pytest.fixture
def grpo(model_folder: Path, tmp_path: Path) -> Run:
    """Builds a `GRPOTrainer` from options."""

    def build(
        *,
        reward_funcs: Any = vowel_share,
        train_dataset: Any = None,
        callbacks: Any = None,
        eval_dataset: Any = None,
        **options: Any,
    ) -> GRPOTrainer:
        lengths = {"num_generations": 4, "max_completion_length": 8}
        config = GRPOConfig(**{"output_dir": new_folder(tmp_path / "grpo"), **QUIET, **lengths, **options})
        rows = records() if train_dataset is None else train_dataset
        return GRPOTrainer(str(model_folder), reward_funcs, config, rows, eval_dataset, callbacks=callbacks)

    return build


def tool_trainer(
    model: str | Path, output_dir: str, script: Any = None, reward_funcs: Any = None, train_dataset: Any = None, *, tools: Any = None,
    environment_factory: Any = None, callbacks: Any = None, by_row: bool = False, describes: bool = True, **options: Any,
) -> GRPOTrainer:  # fmt: skip
    """A trainer whose chat template renders tools (and `describes` them), with `script` as its policy."""
    processor = AutoProcessor.from_pretrained(model)
    processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT, describes=describes)
    config = GRPOConfig(
        **{"output_dir": output_dir, **QUIET, "num_generations": 4, "max_completion_length": 200, "num_prompts_per_step": 2,
           "per_device_train_batch_size": 8, "max_steps": 1, "gold_check": "off", **options}
    )  # fmt: skip
    trainer = GRPOTrainer(
        str(model), reward_funcs, config, records()[:4] if train_dataset is None else train_dataset,
        processing_class=processor, tools=tools, environment_factory=environment_factory, callbacks=callbacks,
    )  # fmt: skip
    if script is not None:
        scripted: Any = Scripted(trainer, script, by_row=by_row)
        trainer.rollouts.turns.sampler = scripted  # pyright: ignore[reportOptionalMemberAccess]
    return trainer


@pytest.fixture
def with_tools(model_folder: Path, tmp_path: Path) -> Run:
    """Builds a `GRPOTrainer` with tools; see `tool_trainer`."""

    def build(*arguments: Any, **options: Any) -> GRPOTrainer:
        return tool_trainer(
            model_folder, options.pop("output_dir", new_folder(tmp_path / "tools")), *arguments, **options
        )

    return build


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def furthest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest distance of two sets of tensors, relative to the larger norm of each."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / left[name].norm().clamp(min=1e-6)) for name in left)


@pytest.fixture(scope="session")
def rows_of(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The gradients of every row of the objective table under a cut, on one rank; each cut is run once."""
    from .rows import CUTS, gradients_of_rows

    @cache
    def found(cut: str, steps_per_rollout: int) -> dict[str, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("rows")
        return gradients_of_rows(str(model_folder), str(folder), CUTS[cut], steps_per_rollout)

    return found
