"""Real short runs with one fault each: the verdicts name it. Healthy runs beside them are not accused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boresight.report import read_lines
from boresight.rewards import answer_format_reward, exact_answer_reward

from .conftest import Run, demonstrations, records, vowel_share
from .scripted import Scripted

COLOURS = ("red", "blue", "green", "yellow")
SHORT: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 16, "verdict_steps": 2}


def named(trainer: Any) -> set[str]:
    trainer.train()
    return {line["verdict"] for line in read_lines(Path(trainer.args.output_dir) / "verdicts.jsonl")}


def constant(completions: list[Any], **columns: Any) -> list[float]:
    return [0.25] * len(completions)


def nothing(completions: list[Any], **columns: Any) -> list[None]:
    return [None for _ in completions]


def of_the_prompt(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Differs between prompts, and not within a group."""
    return [len(answer) / 10 for answer in solution]


def forgetful(completions: list[Any], **columns: Any) -> list[float | None]:
    """Applies to some completions."""
    return [None if index % 2 else value for index, value in enumerate(vowel_share(completions))]


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "a constant reward": ("reward_constant", {"reward_funcs": constant}),
    "groups of equal rewards": ("rewards_equal", {"reward_funcs": of_the_prompt}),
    "a reward that returns None": ("not_applied", {"reward_funcs": [vowel_share, nothing]}),
    "no reward at all": ("not_applied", {"reward_funcs": nothing}),
    "temperature near 0": ("completions_equal", {"temperature": 1e-4}),
    "a format that is never met": ("format_failures", {"reward_funcs": [answer_format_reward, vowel_share]}),
    "cut answers": ("truncated", {"max_completion_length": 2}),
    "a learning rate far too low": ("below_resolution", {"learning_rate": 1e-10}),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_set_up_is_named(grpo: Run, fault: str) -> None:
    name, options = BROKEN[fault]
    assert name in named(grpo(**SHORT | options))


def test_a_wrong_solution_column_is_named(grpo: Run) -> None:
    """Every answer can be read, and the column holds none of them."""
    rows = [row | {"solution": "banana"} for row in records()]
    trainer = grpo(**SHORT, reward_funcs=exact_answer_reward, train_dataset=rows, max_completion_length=24)
    trainer.sampler = trainer.rollouts.sampler = Scripted(
        trainer, lambda place, k, turn: f"<answer>{COLOURS[k]}</answer>"
    )
    assert "never_right" in named(trainer)


HEALTHY: dict[str, dict[str, Any]] = {
    "a reward with every shade": {"reward_funcs": vowel_share},
    "a reward that applies to some": {"reward_funcs": [vowel_share, forgetful]},
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_run_is_not_accused(grpo: Run, case: str) -> None:
    accused = named(grpo(**SHORT | HEALTHY[case] | {"max_completion_length": 12}))
    assert accused - {"truncated", "image_ignored"} <= {"not_held_out"}  # random weights: they end late and look little


def test_demonstrations_that_are_learned_are_not_accused(sft: Run) -> None:
    options: dict[str, Any] = {"max_steps": 6, "verdict_steps": 2, "per_device_train_batch_size": 8}
    assert named(sft(**options)) == {"not_held_out"}


def test_held_out_rows_make_it_fine(sft: Run) -> None:
    options: dict[str, Any] = {"max_steps": 6, "verdict_steps": 2, "per_device_train_batch_size": 8}
    trainer = sft(**options, eval_dataset=demonstrations(4), eval_strategy="steps", eval_steps=1)
    assert named(trainer) == {"not_held_out", "fine"} or named(trainer) == {"fine"}


def test_before_the_first_evaluation_its_step_is_named(sft: Run) -> None:
    options: dict[str, Any] = {"max_steps": 6, "verdict_steps": 2, "per_device_train_batch_size": 8}
    trainer = sft(**options, eval_dataset=demonstrations(4), eval_strategy="steps", eval_steps=4)
    trainer.train()
    before, at, after = (Path(trainer.args.output_dir) / "verdicts.jsonl").read_text().splitlines()
    # The verdict of a step comes before its evaluation.
    assert "held-out rows are first asked at step 4." in before and "held-out rows are first asked at step 4." in at
    assert "held-out rows were asked only once" in after


def test_a_learning_rate_far_too_high_is_named(sft: Run) -> None:
    options: dict[str, Any] = {"max_steps": 6, "verdict_steps": 2, "per_device_train_batch_size": 8}
    assert {"loss_rises", "steps_skipped"} & named(sft(**options, learning_rate=3.0, lr_scheduler_type="constant"))


def test_the_first_verdict_does_not_wait_for_fifty_steps(sft: Run) -> None:
    """Nor for a log: the step of a verdict is logged."""
    trainer = sft(max_steps=21, per_device_train_batch_size=2, logging_steps=1000)
    trainer.train()
    assert [line["step"] for line in read_lines(Path(trainer.args.output_dir) / "verdicts.jsonl")] == [20, 21]
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [1, 20, 21]
