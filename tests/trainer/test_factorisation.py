"""A step's gradients do not depend on how the step is cut."""

from __future__ import annotations

from typing import Any

import pytest

from boresight.loss.objective import OBJECTIVES

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


METHODS: list[dict[str, Any]] = [
    {},
    {"loss_type": "grpo", "beta": 0.1},
    {"importance_sampling_level": "sequence", "entropy_coef": 0.01},
    {"top_entropy_quantile": 0.4},
    {"mask_truncated_completions": True, "beta": 0.1},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none", "advantage_baseline": "leave_one_out", "loss_type": "rloo"},
]


@pytest.mark.parametrize("options", GROUPS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_grpo(grpo: Run, options: dict[str, Any], method: dict[str, Any]) -> None:
    whole = gradients(grpo, per_device_train_batch_size=24, **method)
    assert furthest(whole, gradients(grpo, **options, **method)) < TOLERANCE


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_every_objective_off_policy(grpo: Run, loss_type: str) -> None:
    """The third and fourth step of one generation, where ratios are no longer 1: two groups in one pass, or each in two."""
    method: dict[str, Any] = {"loss_type": loss_type, "max_steps": 4, "max_completion_length": 6}
    if loss_type == "cispo":
        method["epsilon_high"] = 5.0
    if loss_type == "rloo":
        method |= {"scale_rewards": "none", "advantage_baseline": "leave_one_out"}
    kept = []
    for cut in (
        {"per_device_train_batch_size": 8, "steps_per_generation": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 8},
        {"per_device_train_batch_size": 8, "steps_per_generation": 4, "max_tokens_per_pass": 40},
    ):
        grpo(callbacks=[gradients := Gradients()], **method, **cut).train()
        kept.append(gradients.steps)
    for other in kept[1:]:
        for step in (0, 3):
            assert furthest(kept[0][step], other[step]) < 10 * TOLERANCE


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
