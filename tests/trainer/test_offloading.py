"""Gradients are the same to the bit when activations wait in the CPU's memory. On a CPU the copies stay there; no GPU has run this."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from boresight import GRPOConfig, SFTConfig
from boresight.data.sources import RowDataset
from boresight.errors import ConfigError
from boresight.model.offloading import MIN_BYTES, OffloadedActivations
from boresight.modules import checkpoint_activations

from .conftest import Run


def test_weights_and_small_tensors_stay() -> None:
    """Of x @ w, the input moves, its weight and its transposed view do not; four numbers are too small."""
    weight = torch.randn(32, 32, requires_grad=True)
    rows, few = torch.randn(16, 32, requires_grad=True), torch.randn(4, requires_grad=True)
    hooks = OffloadedActivations([weight])
    with hooks:
        loss = (rows @ weight).sum() + (few * few).sum() + (rows @ weight.T).sum()
    assert hooks.num_bytes == 2 * rows.nbytes > MIN_BYTES > few.nbytes
    loss.backward()
    ones = torch.ones(16, 32)
    assert few.grad is not None and torch.equal(few.grad, 2 * few)
    assert weight.grad is not None and torch.allclose(weight.grad, rows.T @ ones + ones.T @ rows)


def test_what_is_kept_is_a_copy() -> None:
    """A view that is kept does not hold what it is a view of."""
    kept: Any = OffloadedActivations([]).pack_hook(torch.zeros(1000, 1000)[:, :8])
    assert kept[1].untyped_storage().nbytes() == 1000 * 8 * 4


@pytest.mark.parametrize("checkpointing", [True, False])
def test_gradients_of_a_step(checkpointing: bool, sft: Run) -> None:
    trainer: Any = sft(per_device_train_batch_size=4, gradient_checkpointing=checkpointing)
    model: nn.Module = trainer.policy.outer
    if checkpointing:
        checkpoint_activations(trainer.policy.outer, trainer.args.gradient_checkpointing_kwargs)
    rows = RowDataset(trainer.train_dataset)
    items = trainer.longest_items([rows[number] for number in range(4)])
    found = []
    for on in (False, True):
        model.zero_grad(set_to_none=True)
        hooks = OffloadedActivations(model.parameters()) if on else contextlib.nullcontext()
        trainer.offloading = lambda hooks=hooks: hooks
        trainer.trial_step(items)
        found.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert isinstance(hooks, OffloadedActivations) and hooks.num_bytes > 10_000
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig])
def test_a_cpu_refuses_it(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"activation_offloading=True .* this run is on a CPU"):
        config(activation_offloading=True, use_cpu=True)
