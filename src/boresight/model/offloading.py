"""Activations in the CPU's memory between the forward pass and the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MIN_BYTES = 1024
"""Smaller tensors stay, as in TRL: a copy costs more than they take."""


class OffloadedActivations(saved_tensors_hooks):
    """A context in which what autograd keeps for the backward pass is moved into the CPU's memory, and back when it is needed.

    Weights and small tensors stay where they are. A tensor that several operations keep is moved once for each of them. Values are copied,
    so gradients are the same to the bit. With gradient checkpointing, what is kept are the inputs of layers.

    Args:
        weights: of the model; autograd keeps them too.

    Attributes:
        num_bytes: moved so far.

    Reference:
        TRL's `activation_offloading`, which also overlaps copies with computing; here a copy waits for the device.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._stays = {weight.untyped_storage().data_ptr() for weight in weights}
        self.num_bytes = 0
        super().__init__(self._away, self._back)

    def _away(self, tensor: Tensor) -> Any:
        if tensor.nbytes < MIN_BYTES or tensor.untyped_storage().data_ptr() in self._stays:
            return tensor
        self.num_bytes += tensor.nbytes
        # A view of a larger tensor must not keep all of it alive.
        return tensor.device, tensor.detach().to("cpu", copy=True)

    def _back(self, kept: Any) -> Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        device, tensor = kept
        return tensor.to(device)
