"""One more token for every completion: the cache that a prompt leaves, and the ordinary way to go on from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from boresight.families import family_of, why_no_branches
from boresight.modules import matching_arguments
from boresight.types import Prompt

ImageFeatures = Callable[[Sequence[Prompt]], Any]
"""Prompts with images → what their vision tower would return for them all: transformers' `mm_encoder_outputs["image"]`."""


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
        self._family = family_of(model.config.model_type)
        self._rope_index: Any = getattr(model.base_model, "get_rope_index", None)
        self.axes = 0
        """Of positions in M-RoPE models, known after a first prompt; 0 where they are plain."""

    def why_not_branches(self) -> str | None:
        """What keeps the model from `branches.Branches`, or None when nothing does."""
        if not self.layer_types and getattr(self.config, "sliding_window", None) is not None:
            return "its config has a sliding window but does not say which layers use it"
        return why_no_branches(self.config)

    def __call__(self, prompt: Prompt, cache: DynamicCache) -> tuple[Tensor, int, DynamicCache]:
        """Logits [1, V] after the prompt, the position of the first token that follows, and the filled cache."""
        ids, types = prompt.ids[None].to(self.device), prompt.token_types[None].to(self.device)
        inputs: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in prompt.vision.items()}
        inputs |= matching_arguments(self.model.forward, dict.fromkeys(self._family.token_types, types))
        position = ids.shape[1]
        if self._rope_index is not None:
            # Positions are given, here and at every step: left alone, the model would read and write `rope_deltas` on itself.
            grids = matching_arguments(self._rope_index, {name: inputs[name] for name in prompt.vision})
            inputs["position_ids"], _ = self._rope_index(ids, mm_token_type_ids=types, **grids)
            self.axes = len(inputs["position_ids"])
            position = int(inputs["position_ids"].max()) + 1
        if prompt.vision and self.features is not None:
            inputs = {name: value for name, value in inputs.items() if name not in prompt.vision}
            inputs["mm_encoder_outputs"] = {"image": self.features([prompt])}
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return output.logits[:, -1], position, cache


class Rows:
    """Completions of one prompt as rows of their own: N = K slots, for layers that carry a state."""

    def __init__(self, prefill: Prefill, prompt: Prompt, num_completions: int) -> None:
        logits, self._position, self._cache = prefill(prompt, DynamicCache(config=prefill.config))
        self.model, self._axes = prefill.model, prefill.axes
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
