"""Decoding: the prompt's forward pass, which fills a cache, and the ordinary way to sample from that cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from boresight.families import family_of, why_no_branches
from boresight.modules import matching_arguments
from boresight.state_layers import why_no_states
from boresight.types import Prompt

ImageFeatures = Callable[[Sequence[Prompt]], Any]
"""Prompts with images → the vision tower's output for all of them: transformers' `mm_encoder_outputs["image"]`."""


class Decoder(Protocol):
    """The state of completions that are being sampled, one slot per completion."""

    logits: Tensor
    """[N, V] logits of every slot's first token."""

    def step(self, tokens: Tensor) -> Tensor:
        """[N, V] logits of the next token, after `tokens` [N]."""
        ...

    def compact(self, alive: Tensor) -> Tensor | None:
        """Drop slots that are not `alive` ([N]) if that saves work.

        Returns:
            The former indices of the kept slots, or None if all are kept. Kept slots may be finished: batches are rectangles.
        """
        ...


def is_worth_dropping(kept: int, slots: int) -> bool:
    """Whether copying `kept` of a cache's slots costs less than continuing with all of them."""
    return kept <= 0.75 * slots


class Prefill:
    """Runs one prompt, with its images, through a model, and holds the model properties that decoding depends on.

    Prompts run one at a time, because the processor's tensors belong to one prompt and are never joined.

    Args:
        model: the model in evaluation mode.
        features: returns image features, computed or cached; None lets the model encode images.
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
        """The number of position axes in M-RoPE models, known after the first prompt; 0 for plain positions."""

    def why_not_branches(self) -> str | None:
        """Why the model cannot use `branches.Branches`, or None if it can."""
        if not self.layer_types and getattr(self.config, "sliding_window", None) is not None:
            return "its config has a sliding window but does not say which layers use it"
        return why_no_branches(self.config) or why_no_states(self.model)

    def __call__(self, prompt: Prompt, cache: DynamicCache) -> tuple[Tensor, int, DynamicCache]:
        """Logits [1, V] after the prompt, the position of the first token that follows, and the filled cache."""
        ids, types = prompt.ids[None].to(self.device), prompt.token_types[None].to(self.device)
        inputs: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in prompt.vision.items()}
        inputs |= matching_arguments(self.model.forward, dict.fromkeys(self._family.token_types, types))
        position = ids.shape[1]
        if self._rope_index is not None:
            # Positions are passed here and at every step. Without them the model would read and write its own `rope_deltas`.
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
    """Completions of one prompt as separate rows: N = K slots, for layers with a recurrent state."""

    def __init__(self, prefill: Prefill, prompt: Prompt, num_completions: int) -> None:
        logits, self._position, self._cache = prefill(prompt, DynamicCache(config=prefill.config))
        self.model, self._axes = prefill.model, prefill.axes
        copies = torch.zeros(num_completions, dtype=torch.long, device=logits.device)
        self.logits = logits[copies]
        # `reorder_cache` works for every kind of layer; `batch_repeat_interleave` leaves out recurrent states.
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
