"""Losses and gradients that are no numbers: they change no weight, are counted, and end a run that cannot learn."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainerCallback

from boresight.errors import NonFiniteError
from boresight.trainer.nonfinite import ZeroGradients, largest

from .conftest import Run, weights


class EveryStep(TrainerCallback):
    """Keeps the weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights.append({name: value.detach().clone() for name, value in model.named_parameters()})


def poison_loss(trainer: Any, steps: Collection[int]) -> None:
    """Multiply the loss by NaN at these steps, counted from 0."""
    loss = trainer.loss

    def poisoned(*args: Any) -> torch.Tensor:
        return loss(*args) * (torch.nan if trainer.state.global_step in steps else 1)

    trainer.loss = poisoned


def poison_gradient(trainer: Any, steps: Collection[int]) -> None:
    """Put one infinite number into one gradient at these steps; the loss stays finite."""

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[3] = torch.inf if trainer.state.global_step in steps else gradient.view(-1)[3]
        return gradient

    next(iter(trainer.model.get_decoder().layers[0].parameters())).register_hook(poisoned)


POISONS = {"loss": poison_loss, "gradient": poison_gradient}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("poison", POISONS)
def test_such_a_step_changes_no_weight_and_is_counted(sft: Run, poison: str) -> None:
    kept = EveryStep()
    trainer = sft(callbacks=[kept], max_steps=4, lr_scheduler_type="constant")
    POISONS[poison](trainer, {1, 3})
    trainer.train()
    first, second, third, fourth = kept.weights
    assert equal(first, second) and not equal(second, third) and equal(third, fourth)
    assert all(value.isfinite().all() for value in fourth.values())
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert [line.get("update/num_skipped_steps", 0) for line in logs] == [0, 1, 0, 1]
    assert [line["loss"] != line["loss"] for line in logs] == [False, poison == "loss", False, poison == "loss"]


def test_without_the_check_one_gradient_makes_all_weights_nan(sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    trainer = sft(max_steps=1)
    monkeypatch.setattr(trainer, "_refuse_non_finite", lambda *_: None)
    poison_loss(trainer, {0})
    trainer.train()
    assert any(value.isnan().any() for value in weights(trainer).values())


def test_three_in_a_row_end_the_run_with_a_checkpoint(sft: Run) -> None:
    trainer = sft(max_steps=9)
    poison_loss(trainer, {1, 3, 4, 5})
    with pytest.raises(
        NonFiniteError, match=r"^step 6: the loss is NaN or infinite on rows \d+.*3 steps in a row"
    ) as error:
        trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-5"
    assert str(checkpoint) in error.value.__notes__[0]
    saved = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert all(value.isfinite().all() for value in saved.parameters())


def test_stop_ends_the_run_at_the_first(sft: Run) -> None:
    trainer = sft(max_steps=4, nan_policy="stop")
    poison_gradient(trainer, {2})
    with pytest.raises(NonFiniteError, match=r"^step 3: a gradient is NaN or infinite.*nan_policy='stop'"):
        trainer.train()


def test_weights_that_are_no_numbers_are_not_saved(sft: Run, tmp_path: Path) -> None:
    trainer = sft(max_steps=1)
    with torch.no_grad():
        next(trainer.model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"1 of .* trained tensors hold NaN"):
        trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_grpo_goes_on_after_a_skipped_step(grpo: Run) -> None:
    trainer = grpo(max_steps=3, per_device_train_batch_size=8)
    poison_loss(trainer, {1})
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(value.isfinite().all() for value in weights(trainer).values())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_in_many_is_found(bad: float) -> None:
    tensors = [torch.full((5, 7), 0.5), torch.full((11,), -3.0), torch.zeros(()), torch.empty(0)]
    assert (float(largest(tensors)), float(largest([]))) == (3.0, 0.0)
    tensors[0][4, 6] = bad
    assert not largest(tensors).isfinite()


def test_ten_gradients_of_zero_in_a_row_are_said() -> None:
    zeros = ZeroGradients()
    said = [zeros.seen(step, is_zero=step != 5) for step in range(1, 27)]
    assert [step for step, line in enumerate(said, 1) if line] == [15, 25]
    assert str(said[14]).startswith("step 15: the gradient was exactly 0 in 10 steps in a row, so nothing is learned.")


def test_a_run_without_a_gradient_says_so(sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boresight.trainer.nonfinite.MANY_ZEROS", 2)
    trainer, said = sft(max_steps=2), []
    loss = trainer.loss
    trainer.loss = lambda *args: loss(*args) * 0
    trainer.log_once = said.append
    trainer.train()
    assert (
        len([line for line in said if line.startswith("step 2: the gradient was exactly 0 in 2 steps in a row")]) == 1
    )


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_a_log_probability_that_is_not_finite_is_named(grpo: Run, bad: float) -> None:
    """Of the old policy: −∞ there makes a ratio of ∞, which clipping turns into a finite loss."""
    trainer, said = grpo(max_steps=2, per_device_train_batch_size=8, num_iterations=2), []
    collect = trainer.collect

    def collected(prompts: Any) -> Any:
        items = collect(prompts)
        for item in items:
            item.old[0, 0] = bad
        return items

    trainer.collect = collected
    trainer.log_once = said.append
    trainer.train()
    assert [line for line in said if line.startswith("step 1: a log-probability is NaN or infinite on rows")]
