"""One more token for every completion: how prompts and completions lie in the key-value cache while they are sampled.

`Branches` keeps the prompt once. All completions of a prompt are one row of the batch, each step's tokens its queries, and a mask lets
each see the prompt and itself:

    keys of a row     [ prompt, padded | step 1 of c1 … cK | step 2 of c1 … cK | … ]
    queries           [ c1 … cK ]

So nothing is copied K times, prompts of any lengths share a batch, and a finished completion's column can be dropped. `Rows` is the
ordinary layout, K copies of one prompt's cache, for layers that carry a state which no mask can branch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from boresight.types import Prompt

PictureFeatures = Callable[[Sequence[Prompt]], Any]
"""Prompts with pictures to what their tower would return for them all: transformers' `mm_encoder_outputs["image"]`."""

GROW_STEPS = 64
"""Least number of steps that a cache grows by. It grows by half at least, so that copying stays a constant share of the work."""


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


class BranchLayer(CacheLayerMixin):
    """One layer's keys and values, written in place into buffers [G, heads, places, head size] with room ahead."""

    is_sliding = False

    def __init__(self, layers: Sequence[CacheLayerMixin], width: int) -> None:
        super().__init__()
        self.length = width
        self.keys = _stacked([layer.keys for layer in layers], width)
        self.values = _stacked([layer.values for layer in layers], width)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers are there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def grow(self, places: int) -> None:
        """Make room for `places` in all."""
        self.keys, self.values = (
            torch.cat([buffer[:, :, : self.length], buffer.new_empty(*buffer.shape[:2], places - self.length, buffer.shape[3])], 2)
            for buffer in (self.keys, self.values)
        )

    def select(self, rows: Tensor, places: Tensor) -> None:
        """Keep some rows ([G′]) and of each some places ([G′, L′])."""
        self.length = places.shape[1]
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            index = places[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
            setattr(self, name, buffer[rows].gather(2, index))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def _stacked(tensors: Sequence[Tensor], width: int) -> Tensor:
    """[G, heads, width, head size] from tensors [1, heads, ≤ width, head size]; padding is zero, since 0 × NaN is NaN."""
    first = tensors[0]
    stacked = first.new_zeros(len(tensors), first.shape[1], width, first.shape[3])
    for row, tensor in zip(stacked, tensors, strict=True):
        row[:, : tensor.shape[2]] = tensor[0]
    return stacked


class Branches:
    """Completions as branches of their prompts' rows: N = G × K slots, those of one prompt side by side."""

    def __init__(self, prefill: Prefill, prompts: Sequence[Prompt], num_completions: int) -> None:
        self.model, device = prefill.model, prefill.device
        done = [prefill(prompt, DynamicCache()) for prompt in prompts]
        self.logits = torch.cat([logits for logits, _, _ in done]).repeat_interleave(num_completions, 0)
        self._lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        self._starts = torch.tensor([start for _, start, _ in done], device=device)
        self._axes = prefill.axes
        self._width = int(self._lengths.max())
        self._layers = [BranchLayer(layers, self._width) for layers in zip(*(cache.layers for _, _, cache in done), strict=True)]
        self._cache = Cache(layers=list(self._layers))
        self._k = num_completions
        self._steps = 0
        self._room = 0
        self._window = prefill.window
        self._kinds = prefill.kinds

    def step(self, tokens: Tensor) -> Tensor:
        if self._steps == self._room:
            self._grow()
        ids = tokens.view(-1, self._k)
        positions = (self._starts + self._steps)[:, None].expand_as(ids)
        output = self.model(
            input_ids=ids,
            position_ids=positions.expand(self._axes, -1, -1) if self._axes else positions,
            attention_mask=self._mask(),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._steps += 1
        return output.logits.flatten(0, 1)

    def compact(self, alive: Tensor) -> Tensor | None:
        alive = alive.view(-1, self._k)
        counts = alive.sum(1)
        rows = counts.nonzero()[:, 0]
        k = int(counts.max())
        if len(rows) * k > WORTH_COMPACTING * alive.numel():
            return None
        columns = alive[rows].int().argsort(1, descending=True, stable=True)[:, :k]
        kept = rows[:, None] * self._k + columns
        width = int(self._lengths[rows].max())
        steps = torch.arange(self._steps, device=alive.device) * self._k + self._width
        own = steps[None, :, None] + columns[:, None, :]
        prompt = torch.arange(width, device=alive.device).expand(len(rows), -1)
        places = torch.cat([prompt, own.flatten(1)], 1)
        for layer in self._layers:
            layer.select(rows, places)
        self._lengths, self._starts = self._lengths[rows], self._starts[rows]
        self._k, self._width, self._room = k, width, self._steps
        return kept.flatten()

    def _grow(self) -> None:
        self._room += max(GROW_STEPS, self._room // 2)
        for layer in self._layers:
            layer.grow(self._width + self._room * self._k)
        device = self._lengths.device
        prompt = torch.arange(self._width, device=device)
        step = torch.arange(self._room, device=device).repeat_interleave(self._k)
        # The place of each key in its own sequence: what a sliding window counts.
        self._order = torch.cat([prompt.expand(len(self._lengths), -1), self._lengths[:, None] + step], 1)
        column = torch.arange(self._k, device=device)
        branch = column[:, None] == column.repeat(self._room)
        seen = torch.cat(
            [
                (prompt < self._lengths[:, None])[:, None].expand(-1, self._k, -1),
                branch.expand(len(self._lengths), -1, -1),
            ],
            2,
        )[:, None]
        self._seen = _additive(seen, self._layers[0].keys.dtype)

    def _mask(self) -> Tensor | dict[str, Tensor]:
        """[G, 1, K, places] what each query sees, for each kind of layer where there are several."""
        stop = self._width + (self._steps + 1) * self._k
        full = self._seen[..., :stop]
        if self._window is None:
            return full
        distance = (self._lengths + self._steps)[:, None] - self._order[:, :stop]
        near = _additive(distance < self._window, full.dtype)[:, None, None]
        return {kind: full + near if kind == "sliding_attention" else full for kind in self._kinds}


WORTH_COMPACTING = 0.75
"""Share of the slots that may stay for a compaction to be worth its copy."""


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where true, the dtype's minimum elsewhere: the form that every attention function takes."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min / 2)


class Rows:
    """Completions of one prompt as rows of their own: N = K slots."""

    def __init__(self, prefill: Prefill, prompt: Prompt, num_completions: int) -> None:
        self.model, self._axes = prefill.model, prefill.axes
        logits, self._position, self._cache = prefill(prompt, DynamicCache(config=prefill.config))
        copies = torch.zeros(num_completions, dtype=torch.long, device=logits.device)
        self.logits = logits[copies]
        # Every kind of layer can be reordered, recurrent states included; `batch_repeat_interleave` leaves those out.
        self._cache.reorder_cache(copies)

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
        if int(alive.sum()) > WORTH_COMPACTING * len(alive):
            return None
        kept = alive.nonzero()[:, 0]
        self._cache.reorder_cache(kept)
        return kept


class Prefill:
    """Runs one prompt, with its pictures, through a model, and knows what of the model decoding depends on.

    Prompts go one at a time: the processor's tensors belong to one prompt and are never joined.

    Args:
        model: in evaluation mode.
        features: encodes pictures, or knows them already; None lets the model encode them.
    """

    def __init__(self, model: PreTrainedModel, features: PictureFeatures | None = None) -> None:
        self.model = model
        self.features = features
        self.device = next(model.parameters()).device
        self.config = model.config.get_text_config()
        self.kinds = set(getattr(self.config, "layer_types", None) or ())
        self.window: int | None = self.config.sliding_window if "sliding_attention" in self.kinds else None
        self._rope_index = getattr(model.base_model, "get_rope_index", None)
        self.axes = 3 if self._rope_index else 0
        self._accepts = inspect.signature(model.forward).parameters.keys()

    def why_not_branches(self) -> str | None:
        """What keeps the model from `Branches`, or None when nothing does."""
        foreign = self.kinds - {"full_attention", "sliding_attention"}
        if foreign:
            return f"its layers of type {', '.join(sorted(foreign))} carry a state that no mask can branch"
        if not self.kinds and getattr(self.config, "sliding_window", None) is not None:
            return "its config has a sliding window but does not say which layers use it"
        if not str(self.config._attn_implementation).endswith(("sdpa", "eager")):
            return f"its attention ({self.config._attn_implementation}) takes no mask of ours; 'sdpa' does"
        return None

    def __call__(self, prompt: Prompt, cache: DynamicCache) -> tuple[Tensor, int, DynamicCache]:
        """Logits [1, V] after the prompt, the position of the first token that follows, and the filled cache."""
        ids, types = prompt.ids[None].to(self.device), prompt.token_types[None].to(self.device)
        inputs: dict[str, Any] = {name: tensor.to(self.device) for name, tensor in prompt.vision.items()}
        inputs |= {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in self._accepts}
        start = ids.shape[1]
        if self._rope_index is not None:
            # Given explicitly, here and at every step: the model would keep its own on itself (`rope_deltas`), for the next caller to find.
            grids = {name: tensor for name, tensor in inputs.items() if name.endswith("grid_thw")}
            inputs["position_ids"], _ = self._rope_index(ids, mm_token_type_ids=types, **grids)
            start = int(inputs["position_ids"].max()) + 1
        if prompt.vision and self.features is not None:
            inputs = {name: value for name, value in inputs.items() if name not in prompt.vision}
            inputs["mm_encoder_outputs"] = {"image": self.features([prompt])}
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
        return output.logits[:, -1], start, cache
