"""Decoding: the prompt's forward pass, which fills a cache, and the ordinary ways to sample from that cache, or without one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from boresight.families import why_no_branches
from boresight.modules import matching_arguments, named_cache
from boresight.own_forward import (
    is_token_input,
    joined_vision,
    on_model,
    own_logits,
    rope_positions,
    sequence_tensors,
)
from boresight.state_layers import why_no_states
from boresight.types import HasImages, Prompt

ImageFeatures = Callable[[Sequence[Sequence[HasImages]]], Sequence[Any]]
"""For each of several prompts, sets of images → the vision tower's output for each prompt: transformers' `mm_encoder_outputs["image"]`."""


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
        self.axes = 0
        """The number of position axes in M-RoPE models, known after the first prompt; 0 for plain positions."""
        self._outputs: dict[tuple[str, ...], Any] = {}
        """The vision tower's outputs of prompts that are about to run, by the digests of their images."""

    def why_not_branches(self) -> str | None:
        """Why the model cannot use `branches.Branches`, or None if it can."""
        if not self.layer_types and getattr(self.config, "sliding_window", None) is not None:
            return "its config has a sliding window but does not say which layers use it"
        return why_no_branches(self.config) or why_no_states(self.model)

    def encode(self, prompts: Sequence[Sequence[HasImages]]) -> None:
        """Run the images of several prompts through the vision tower together. They are kept until the next call.

        Args:
            prompts: for each, its sets of images that are not read yet. Sets that run without this are encoded one prompt at a time.
        """
        self._outputs = {}
        if self.features is not None:
            wanted = {_digests(sets): sets for sets in prompts if sets}
            self._outputs = dict(zip(wanted, self.features(list(wanted.values())), strict=True)) if wanted else {}

    def _output(self, sets: Sequence[HasImages]) -> Any:
        assert self.features is not None
        ready = self._outputs.get(_digests(sets))
        # A model may write into what it reads.
        return self.features([sets])[0] if ready is None else copy.copy(ready)

    def __call__(
        self, prompt: Prompt, cache: DynamicCache, *, num_known: int = 0, num_known_sets: int = 0
    ) -> tuple[Tensor, int, DynamicCache]:
        """Run a prompt, or what follows its first tokens.

        Args:
            prompt: with its earlier turns.
            cache: filled with the first `num_known` tokens.
            num_known: how many tokens the cache holds.
            num_known_sets: how many of the prompt's sets of images lie among them.

        Returns:
            Logits [1, V] after the prompt, the position of the first token that follows, and the filled cache.
        """
        # With ready features, grids and sizes stay.
        tensors = sequence_tensors(self.model, prompt, pixels=False)
        length, new_sets = len(prompt.ids), prompt.image_sets[num_known_sets:]
        tokens = {name: values for name, values in tensors.items() if is_token_input(values, length)}
        # Positions are passed here and at every step. Without them the model would read and write its own `rope_deltas`.
        positions = rope_positions(
            self.model.base_model,
            prompt.ids,
            {name: values[0] for name, values in tokens.items() if name not in ("input_ids", "attention_mask")},
            joined_vision(prompt.image_sets, pixels=False),
        )
        given = {name: values[:, num_known:] for name, values in tokens.items()}
        given |= joined_vision(new_sets, pixels=self.features is None)
        ids = given.pop("input_ids").to(self.device)
        del given["attention_mask"]
        inputs: dict[str, Any] = on_model(self.model, matching_arguments(self.model.forward, given))
        if new_sets and self.features is not None:
            inputs["mm_encoder_outputs"] = {"image": self._output(new_sets)}
        position = length
        if positions is None:
            inputs["position_ids"] = torch.arange(num_known, length, device=self.device)[None]
        else:
            inputs["position_ids"] = positions[:, None, num_known:].to(self.device)
            self.axes = len(positions)
            position = int(positions.max()) + 1
        inputs |= matching_arguments(self.model.forward, {"logits_to_keep": 1})
        output = self.model(input_ids=ids, use_cache=True, **named_cache(self.model, cache), **inputs)
        return output.logits[:, -1], position, cache


def _digests(sets: Sequence[HasImages]) -> tuple[str, ...]:
    """The images of sets, and where each set ends."""
    return tuple(each for one in sets for each in (*(image.digest for image in one.images), ""))


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
            use_cache=True,
            **named_cache(self.model, self._cache),
        )
        return output.logits[:, -1]

    def compact(self, alive: Tensor) -> Tensor | None:
        kept = alive.nonzero()[:, 0]
        if not is_worth_dropping(len(kept), len(alive)):
            return None
        self._cache.reorder_cache(kept)  # pyright: ignore[reportArgumentType]
        return kept


class Plain:
    """Completions of one prompt through the model's own forward, without a cache: N = K slots. Each token costs a whole row, images
    included, but the result does not depend on how a model keeps its cache."""

    def __init__(self, prefill: Prefill, prompt: Prompt, num_completions: int) -> None:
        self.model, self._tensors = prefill.model, sequence_tensors(prefill.model, prompt)
        self._ids = torch.empty(num_completions, 0, dtype=torch.long)
        self.logits = self._logits(self._ids[0]).expand(num_completions, -1)

    def step(self, tokens: Tensor) -> Tensor:
        self._ids = torch.cat([self._ids, tokens.cpu()[:, None]], 1)
        return torch.cat([self._logits(row) for row in self._ids])

    def compact(self, alive: Tensor) -> Tensor | None:
        kept = alive.nonzero()[:, 0]
        if len(kept) == len(alive):
            return None
        self._ids = self._ids[kept.cpu()]
        return kept

    def _logits(self, ids: Tensor) -> Tensor:
        return own_logits(self.model, self._tensors, ids, num_last=1)
