"""A step's gradients do not depend on how the step is cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from .conftest import Gradients, Run, furthest
from .rows import ADVANTAGES, LOSSES

TOLERANCE = 2e-5


def gradients(run: Run, **options: Any) -> dict[str, Any]:
    kept = Gradients()
    run(callbacks=[kept], max_steps=1, **options).train()
    return kept.steps[0]


SFT_CUTS = [
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    {"per_device_train_batch_size": 8, "max_tokens_per_pass": 90},
]


@pytest.mark.parametrize("options", SFT_CUTS)
def test_sft(sft: Run, options: dict[str, Any]) -> None:
    whole = gradients(sft, per_device_train_batch_size=8)
    assert furthest(whole, gradients(sft, **options)) < TOLERANCE


RowsOf = Callable[[str, int], dict[str, dict[str, torch.Tensor]]]
"""A cut and the optimizer steps that a generation serves → the gradients of every row."""


@pytest.mark.parametrize("steps_per_rollout", [1, 2])
# test_ranks.py accumulates every row on two ranks.
@pytest.mark.parametrize("cut", ["tokens", pytest.param("accumulated", marks=pytest.mark.soak)])
def test_every_row(rows_of: RowsOf, cut: str, steps_per_rollout: int) -> None:
    whole, other = rows_of("whole", steps_per_rollout), rows_of(cut, steps_per_rollout)
    distances = {row: furthest(gradients, other[row]) for row, gradients in whole.items()}
    assert len(distances) == len(LOSSES) + len(ADVANTAGES)
    assert {row: far for row, far in distances.items() if far > 10 * TOLERANCE} == {}


ALIKE = {
    # One thing here; TRL's differ in what a micro-batch is divided by.
    ("bnpo, token", "dapo, token"),
    ("grpo, sequence_sum", "rloo, sequence_sum"),
    # GSPO-token has GSPO's gradient where all tokens of a completion have one advantage (GSPO, section 4.3).
    ("grpo, sequence", "grpo, sequence_token"),
    ("luspo, sequence", "luspo, sequence_token"),
    ("sapo, sequence", "sapo, sequence_token"),
}


def test_rows_differ(rows_of: RowsOf) -> None:
    """Off policy a row has gradients of its own, so that rows that are equal under every cut are not equal for want of reading."""
    rows = rows_of("whole", 2)
    pairs = itertools.combinations(rows, 2)
    assert {(one, two) for one, two in pairs if furthest(rows[one], rows[two]) < 10 * TOLERANCE} == ALIKE


def test_cutting_without_a_common_total_would_show(sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the mean of the micro-batches' own means is another gradient."""
    whole = gradients(sft, per_device_train_batch_size=8)
    trainer = sft(callbacks=[kept := Gradients()], max_steps=1, **SFT_CUTS[0])
    loss = trainer.loss
    monkeypatch.setattr(
        trainer, "loss", lambda model, items, total, metrics: loss(model, items, trainer.total(items) * 4, metrics)
    )
    trainer.train()
    assert furthest(whole, kept.steps[0]) > 100 * TOLERANCE


def test_skipping_flat_groups_changes_nothing(grpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that is flat in some groups: leaving them out of the passes gives the gradients of keeping them."""

    def often_flat(completions: list[Any], **columns: Any) -> list[float]:
        return [float("e" in completion[0]["content"]) for completion in completions]

    options = {"reward_funcs": often_flat, "per_device_train_batch_size": 24}
    skipped = gradients(grpo, **options)
    trainer = grpo(callbacks=[kept := Gradients()], max_steps=1, **options)
    monkeypatch.setattr(trainer, "learns_from", lambda item: True)
    trainer.train()
    flat = [item.is_flat for item in trainer.experience]
    assert any(flat) and not all(flat)
    assert furthest(kept.steps[0], skipped) < TOLERANCE
