"""A reference that follows the policy (TR-DPO)."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from boresight.model.forward import GroupForward
from boresight.model.reference import Reference
from boresight.trainer.options import ReferenceSyncOptions


class ReferenceSync(TrainerCallback):
    """Moves a reference towards the policy. Gorbatovski et al., arXiv 2404.09656, eq. 4 (α = 1 is its hard update)."""

    def __init__(self, reference: Reference, policy: GroupForward, config: ReferenceSyncOptions) -> None:
        self.reference = reference
        self.policy = policy
        self.config = config

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.config.ref_model_sync_steps == 0:
            self.reference.follow(self.policy, self.config.ref_model_mixup_alpha)
