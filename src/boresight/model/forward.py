"""The one function that all forward passes of all methods use: groups in, log-probabilities of their completions out."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from boresight.errors import ModelError
from boresight.model.head import MAX_LOGIT_BYTES, Head, token_logp
from boresight.model.layouts import Predictions, choose_layout
from boresight.model.vision import VisionEncoder, join_features
from boresight.modules import unwrap
from boresight.types import Group, Ids, LayoutName, ModelFacts, TokenStats


class GroupForward:
    """Log-probabilities of groups under one model. The model's class is never edited; see `attention.install`.

    Other code uses only the call and the attributes below.

    Args:
        model: as loaded, or wrapped by PEFT.
        facts: from `load.model_facts`.
        layout: `"shared"`, `"rows"`, or `"auto"`: see `layouts.choose_layout`.
        max_logit_bytes: see `head.token_logp`.
        max_cache_gib: see `vision.VisionEncoder`.

    Attributes:
        outer: the model as passed, which is trained, saved, and switched between modes.
        model: the transformers model inside it, adapters in its layers.
        facts: as passed.
        layout: the chosen layout.
        max_logit_bytes: as passed.
        vision: encodes images and caches their features; a frozen copy of the model may share it.
        counts: work done so far: vision_encodes, prompt_tokens, completion_tokens, padded_tokens; and the work that prompts and images
            would take if every completion had a row of its own: unshared_vision_encodes, unshared_prompt_tokens. The caller that
            reports the counts clears them.
    """

    outer: nn.Module
    model: PreTrainedModel
    facts: ModelFacts
    layout: LayoutName
    max_logit_bytes: int
    vision: VisionEncoder
    counts: Counter[str]

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        *,
        layout: LayoutName | str = "auto",
        max_logit_bytes: int = MAX_LOGIT_BYTES,
        max_cache_gib: float = 2.0,
    ) -> None:
        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ModelError(
                f"{model.active_peft_config.peft_type} puts its own prompts before ours: use LoRA or a similar method."
            )
        self.outer = model
        self.model = unwrap(model)
        self.facts = facts
        self.max_logit_bytes = max_logit_bytes
        self.counts = Counter()
        self.vision = VisionEncoder(self.model, max_cache_gib=max_cache_gib, counts=self.counts)
        self._head = Head.of(self.model)
        self._layout = choose_layout(self.model, layout, pad_id=facts.pad_id)
        self.layout = self._layout.name
        self._accepts = set(inspect.signature(self.model.base_model.forward).parameters)

    def __call__(
        self,
        groups: Sequence[Group],
        *,
        temperature: float = 1.0,
        ban_modalities: bool = False,
        entropy: bool = False,
        entropy_grad: bool = False,
        collision: bool = False,
        wrapped: nn.Module | None = None,
    ) -> TokenStats:
        """Log-probabilities of every completion of every group, in order.

        Args:
            temperature: the sampler's; 1 for data that was not sampled.
            ban_modalities: give zero probability to ids that only the processor may place, as samplers do.
            entropy: also return entropies; `entropy_grad` lets them carry a gradient.
            collision: also return log Σ p² of every token's distribution.
            wrapped: the same model inside DDP or another wrapper, if the wrapper's hooks must see this forward.
        """

        def forward() -> TokenStats:
            prompts = self._layout.prompts(groups)
            found = self._layout(groups, self._features(prompts))
            self._count(groups, prompts, found)
            return self._stats(
                found,
                banned=self._banned() if ban_modalities else None,
                temperature=temperature,
                entropy=entropy,
                entropy_grad=entropy_grad,
                collision=collision,
            )

        if wrapped is None or wrapped is self.outer:
            return forward()
        with _redirected(wrapped.module, forward):  # pyright: ignore[reportArgumentType]
            return wrapped()

    def _features(self, prompts: Sequence[Group]) -> dict[str, Any]:
        """The image features of these prompts as keyword arguments of the model's forward."""
        with_images = [group.prompt for group in prompts if group.prompt.vision]
        if not with_images:
            return {}
        if "mm_encoder_outputs" not in self._accepts:
            raise ModelError(
                f"{type(self.model).__name__} takes no image features (mm_encoder_outputs), so images cannot be encoded only once: "
                "boresight does not support it."
            )
        return {"mm_encoder_outputs": {"image": join_features(self.vision(with_images))}}

    def _banned(self) -> Ids | None:
        ids = self.facts.modality_ids
        return torch.tensor(ids, device=next(self.model.parameters()).device) if ids else None

    def _stats(self, found: Predictions, **options: Any) -> TokenStats:
        """The head's results, each at the index of its token."""
        results = token_logp(self._head, found.hidden, found.targets, max_logit_bytes=self.max_logit_bytes, **options)
        logp, *rest = (
            None if values is None else values.new_zeros(found.mask.shape).masked_scatter(found.mask, values)
            for values in results
        )
        return TokenStats(logp, found.mask, *rest)  # pyright: ignore[reportArgumentType]

    def _count(self, groups: Sequence[Group], prompts: Sequence[Group], found: Predictions) -> None:
        self.counts["prompt_tokens"] += sum(len(group.prompt.ids) for group in prompts)
        self.counts["completion_tokens"] += sum(group.num_completion_tokens for group in groups)
        self.counts["padded_tokens"] += found.num_padded
        self.counts["unshared_prompt_tokens"] += sum(len(group) * len(group.prompt.ids) for group in groups)
        self.counts["unshared_vision_encodes"] += sum(len(group) * len(group.prompt.images) for group in groups)


@contextmanager
def _redirected(module: nn.Module, forward: Callable[[], TokenStats]) -> Iterator[None]:
    """For one call, `module(…)` runs `forward`, so that a wrapper's own forward, with its hooks, calls it."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
