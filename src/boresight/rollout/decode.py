"""One more token for every completion: what a prompt leaves behind, and the ordinary way to go on from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from boresight.types import Prompt

ImageFeatures = Callable[[Sequence[Prompt]], Any]
"""Prompts with images to what their tower would return for them all: transformers' `mm_encoder_outputs["image"]`."""


class Decoder(Protocol):
    """Completions being sampled, one slot each."""

    logits: Tensor
    """[N, V] of every slot's first token."""

    def step(self, tokens: Tensor) -> Tensor:
        """[N, V] logits of the next token, after `tokens` [N]."""
        ...

    def compact(self, alive: Tensor) -> Tensor | None:
        """Drop slots that are not `alive` ([N]) where that pays.

        Returns:
            The former places of the slots that stay, or None where all do. Some that stay may be dead: batches are rectangles.
        """
        ...


def is_worth_dropping(kept: int, slots: int) -> bool:
    """Whether copying a cache to `kept` of its slots costs less than going on with all of them."""
    return kept <= 0.75 * slots


class Prefill:
    """Runs one prompt, with its images, through a model, and knows what of the model decoding depends on.

    Prompts go one at a time: the processor's tensors belong to one prompt and are never joined.

    Args:
        model: in evaluation mode.
        features: encodes images, or knows them already; None lets the model encode them.
    """

    def __init__(self, model: PreTrainedModel, features: ImageFeatures | None = None) -> None:
        self.model = model
        self.features = features
        self.device = next(model.parameters()).device
        self.config = model.get_decoder().config
        self.layer_types: Sequence[str] = getattr(self.config, "layer_types", None) or ()
        self._rope_index = getattr(model.base_model, "get_rope_index", None)
        self.axes = 3 if self._rope_index else 0
        """Of positions in M-RoPE models; 0 where they are plain."""
        self._accepts = inspect.signature(model.forward).parameters.keys()

    def why_not_branches(self) -> str | None:
        """What keeps the model from `branches.Branches`, or None when nothing does."""
        foreign = set(self.layer_types) - {"full_attention", "sliding_attention"}
        if foreign:
            return f"its layers of type {', '.join(sorted(foreign))} carry a state that cannot branch"
        if not self.layer_types and getattr(self.config, "sliding_window", None) is not None:
            return "its config has a sliding window but does not say which layers use it"
        if getattr(self.config, "attn_logit_softcapping", None) is not None:
            return "it caps its attention scores"
        return None

    def __call__(self, prompt: Prompt, cache: DynamicCache) -> tuple[Tensor, int, DynamicCache]:
        """Logits [1, V] after the prompt, the position of the first token that follows, and the filled cache."""
        ids, types = prompt.ids[None].to(self.device), prompt.token_types[None].to(self.device)
        inputs: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in prompt.vision.items()}
        inputs |= {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in self._accepts}
        position = ids.shape[1]
        if self._rope_index is not None:
            # Positions are given, here and at every step: left alone, the model would read and write `rope_deltas` on itself.
            grids = {name: tensor for name, tensor in inputs.items() if name.endswith("grid_thw")}
            inputs["position_ids"], _ = self._rope_index(ids, mm_token_type_ids=types, **grids)
            position = int(inputs["position_ids"].max()) + 1
        if prompt.vision and self.features is not None:
            inputs = {name: value for name, value in inputs.items() if name not in prompt.vision}
            inputs["mm_encoder_outputs"] = {"image": self.features([prompt])}
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return output.logits[:, -1], position, cache


class Rows:
    """Completions of one prompt as rows of their own: N = K slots, for layers that carry a state."""

    def __init__(self, prefill: Prefill, prompt: Prompt, num_completions: int) -> None:
        self.model, self._axes = prefill.model, prefill.axes
        logits, self._position, self._cache = prefill(prompt, DynamicCache(config=prefill.config))
        copies = torch.zeros(num_completions, dtype=torch.long, device=logits.device)
        self.logits = logits[copies]
        # Every kind of layer can be reordered, recurrent states included; `batch_repeat_interleave` leaves those out.
        self._cache.reorder_cache(copies)  # pyright: ignore[reportArgumentType]

    def step(self, tokens: Tensor) -> Tensor:
        positions = torch.full_like(tokens, self._position)[:, None]
        self._position += 1
        output = self.model(
            input_ids=tokens[:, None],
            position_ids=positions.expand(self._axes, -1, -1) if self._axes else positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1]

    def compact(self, alive: Tensor) -> Tensor | None:
        kept = alive.nonzero()[:, 0]
        if not is_worth_dropping(len(kept), len(alive)):
            return None
        self._cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
        return kept
