"""The model that the policy is compared with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from boresight.errors import ModelError
from boresight.model.forward import GroupForward
from boresight.model.shards import as_shards, whole
from boresight.model.vision import vision_is_frozen
from boresight.modules import evaluating
from boresight.types import Group, TokenStats


class Reference:
    """Log-probabilities under the policy as it was before training, without gradients.

    A policy that trains an adapter is its own reference with the adapter off, at no cost in memory. For any other policy the reference
    is a frozen copy. If the policy's vision modules are frozen, both share image features, so an image is encoded only once.

    Args:
        policy: the forward of the model being trained, before its first step.
        model: another loaded model to compare with; None means the policy itself as it is now.
    """

    def __init__(self, policy: GroupForward, model: nn.Module | None = None) -> None:
        self.adapter = policy.outer if model is None and isinstance(policy.outer, PeftModel) else None
        if self.adapter is not None:
            self.forward = policy
            return
        frozen = copy.deepcopy(policy.outer) if model is None else model
        frozen.requires_grad_(False).eval()
        self.forward = GroupForward(
            frozen,
            policy.facts,
            # Another model is verified on its own.
            layout=policy.layout if model is None else "auto",
            examples=None if model is None else policy.examples,
            joins=policy.vision.joins or model is not None,
            max_logit_bytes=policy.max_logit_bytes,
            max_cache_gib=policy.vision.max_cache_bytes / 2**30,
        )
        if model is None and vision_is_frozen(policy.model):
            self.forward.vision = policy.vision

    def __call__(self, groups: Sequence[Group], **options: Any) -> TokenStats:
        """As `GroupForward.__call__`, under the reference's weights and without dropout."""
        adapter_off = nullcontext() if self.adapter is None else self.adapter.disable_adapter()
        with torch.no_grad(), evaluating(self.forward.outer), adapter_off:
            return self.forward(groups, **options)

    @torch.no_grad()
    def follow(self, policy: GroupForward, share: float) -> None:
        """Update every weight that training changes: reference ← share · policy + (1 − share) · reference.

        Raises:
            ModelError: the reference is the policy with its adapter off, or its weights do not match the policy's.
        """
        if self.adapter is not None:
            raise ModelError("A reference that is the policy with its adapter off cannot follow it: pass a ref_model.")
        own = dict(self.forward.model.named_parameters())
        for name, weight in policy.model.named_parameters():
            if weight.requires_grad:
                if name not in own or own[name].shape != weight.shape:
                    raise ModelError(f"The reference cannot follow the policy: it has no {name} of its shape.")
                own[name].lerp_(as_shards(weight.detach(), own[name]), share)
        if not vision_is_frozen(policy.model):
            self.forward.vision.clear()

    def moved_weights(self, policy: GroupForward) -> dict[str, Tensor]:
        """The weights that `follow` changes, by name. A checkpoint must hold them. All ranks call this together."""
        moved = {name for name, weight in policy.model.named_parameters() if weight.requires_grad}
        return {name: whole(weight.detach()) for name, weight in self.forward.model.named_parameters() if name in moved}

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights from a checkpoint."""
        for name, weight in self.forward.model.named_parameters():
            if name in weights:
                weight.copy_(as_shards(weights[name], weight))
        self.forward.vision.clear()
