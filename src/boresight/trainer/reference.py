"""The reference that a policy is compared with: loading, moving it towards the policy (TR-DPO), and checkpointing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from boresight.model.forward import GroupForward
from boresight.model.load import load_model
from boresight.model.reference import Reference
from boresight.trainer.options import ReferenceSyncOptions


def load_reference(
    policy: GroupForward,
    ref_model: str | Path | nn.Module | None,
    *,
    device: torch.device,
    options: Mapping[str, Any],
) -> Reference:
    """The reference of a policy, before its first step.

    Args:
        policy: the forward of the model being trained.
        ref_model: another model, by hub id, folder or object; None: the policy as it is now, or with its adapter disabled.
        device: the device of another model.
        options: arguments of `from_pretrained`.
    """
    if ref_model is None:
        return Reference(policy)
    return Reference(policy, load_model(ref_model, **options).to(device))


class ReferenceSync(TrainerCallback):
    """Moves a reference towards the policy. Gorbatovski et al., arXiv 2404.09656, eq. 4 (α = 1 is its hard update).

    Raises:
        ModelError: the reference cannot follow the policy. It is raised at construction.
    """

    def __init__(self, reference: Reference, policy: GroupForward, config: ReferenceSyncOptions) -> None:
        self.reference = reference
        self.policy = policy
        self.config = config
        self.reference.follow(policy, 0.0)  # changes nothing, but raises now instead of at the first sync

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.config.ref_model_sync_steps == 0:
            self.reference.follow(self.policy, self.config.ref_model_mixup_alpha)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that a checkpoint needs."""
        return self.reference.moved_weights(self.policy)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.reference.restore(state)
