"""A micro-batch that does not fit in memory is halved and redone. There is no GPU here: a limit on its tokens stands for the device's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from boresight.loss.preference_options import MPO

from .conftest import Gradients, Run, furthest
from .test_dpo import trainer as dpo_trainer

TOLERANCE = 2e-5


def with_memory_for(trainer: Any, tokens: int, *, after_backward: bool = False) -> list[int]:
    """Make passes of more tokens run out of memory, before their forward or in the middle of their backward; the passes' sizes."""
    sizes: list[int] = []
    inner = trainer.loss

    def loss(model: Any, items: Any, total: torch.Tensor, metrics: Any) -> torch.Tensor:
        sizes.append(sum(item.num_tokens for item in items))
        if sizes[-1] <= tokens:
            return inner(model, items, total, metrics)
        if not after_backward:
            raise torch.OutOfMemoryError("no room")
        # The head's gradient is the first to be accumulated, so part of the pass is in the gradients already.
        trainer.policy.model.get_output_embeddings().weight.register_post_accumulate_grad_hook(_fail_once())
        return inner(model, items, total, metrics)

    trainer.loss = loss
    return sizes


def _fail_once() -> Any:
    state = {"failed": False}

    def fail(parameter: torch.Tensor) -> None:
        if not state["failed"]:
            state["failed"] = True
            raise torch.OutOfMemoryError("no room")

    return fail


@pytest.mark.parametrize("after_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("limit", [300, 60])
def test_grpo_gradients_are_identical(
    grpo: Run, limit: int, after_backward: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 60 tokens even a group is cut: its branches run in several passes."""
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 24, "beta": 0.1}
    grpo(callbacks=[whole := Gradients()], **options).train()
    trainer = grpo(callbacks=[cut := Gradients()], **options)
    sizes = with_memory_for(trainer, limit, after_backward=after_backward)
    trainer.train()
    assert sizes[0] > limit and sizes[-1] <= limit
    assert furthest(whole.steps[0], cut.steps[0]) < TOLERANCE
    assert "did not fit in memory; from now on max_tokens_per_pass=" in capsys.readouterr().out


def test_metrics_count_a_step_once(grpo: Run) -> None:
    logs = []
    for limit in (10**9, 60):
        trainer = grpo(max_steps=1, per_device_train_batch_size=24, beta=0.1)
        with_memory_for(trainer, limit)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for name in ("loss", "kl", "entropy", "reward", "num_tokens"):
        assert logs[0][name] == pytest.approx(logs[1][name], abs=1e-5), name


def test_the_shift_counts_a_pair_once(model_folder: Any, tmp_path: Any) -> None:
    ends = []
    for limit in (10**9, 150):
        trainer = dpo_trainer(model_folder, tmp_path / str(limit), per_device_train_batch_size=8, **MPO)
        with_memory_for(trainer, limit)
        trainer.train()
        ends.append(trainer.shift.state_dict())
    assert ends[0]["num_pairs"] == ends[1]["num_pairs"] == 24
    assert ends[0]["value"] == pytest.approx(ends[1]["value"], abs=1e-6)


def test_one_completion_that_does_not_fit_is_the_end(grpo: Run) -> None:
    trainer = grpo(max_steps=1, per_device_train_batch_size=8)
    with_memory_for(trainer, 1)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.train()
    assert "gradient_checkpointing=True" in caught.value.__notes__[0]
