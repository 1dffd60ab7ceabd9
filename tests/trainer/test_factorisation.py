"""A step's gradients do not depend on how the step is cut."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Gradients, Run, furthest

TOLERANCE = 2e-5


def gradients(run: Run, **options: Any) -> dict[str, Any]:
    kept = Gradients()
    run(callbacks=[kept], max_steps=1, **options).train()
    return kept.steps[0]


CUTS = [
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    {"per_device_train_batch_size": 8, "max_tokens_per_pass": 90},
]


@pytest.mark.parametrize("options", CUTS)
def test_sft(sft: Run, options: dict[str, Any]) -> None:
    whole = gradients(sft, per_device_train_batch_size=8)
    assert furthest(whole, gradients(sft, **options)) < TOLERANCE


GROUPS = [
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 6},
    {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3},
    {"per_device_train_batch_size": 24, "max_tokens_per_pass": 60},
    {"num_prompts_per_step": 6, "per_device_train_batch_size": 4},
]


@pytest.mark.parametrize("options", GROUPS)
@pytest.mark.parametrize(
    "method", [{}, {"loss_type": "grpo", "beta": 0.1}, {"importance_sampling_level": "sequence", "entropy_coef": 0.01}]
)
def test_grpo(grpo: Run, options: dict[str, Any], method: dict[str, Any]) -> None:
    whole = gradients(grpo, per_device_train_batch_size=24, **method)
    assert furthest(whole, gradients(grpo, **options, **method)) < TOLERANCE


def test_cutting_without_a_common_total_would_show(sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the mean of the micro-batches' own means is another gradient."""
    whole = gradients(sft, per_device_train_batch_size=8)
    trainer = sft(callbacks=[kept := Gradients()], max_steps=1, **CUTS[0])
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
