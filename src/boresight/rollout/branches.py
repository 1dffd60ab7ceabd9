"""Completions as branches of one prompt during sampling.

The prompt's keys and values are stored once, separate from those of each completion:

    prompt   [G, heads, P, D]         read by all K completions of the group
    branch   [G, heads, K, T, D]      read by its own completion

All completions of a prompt are one row of the batch, and each step's K tokens are its queries. So nothing is copied K times, prompts
of different lengths share a batch, and the column of a finished completion can be dropped. This is the attention of "Hydragen"
(Juravsky et al., arXiv 2402.05099), with one softmax over both parts.

The model class is not edited: transformers looks up attention functions by name, and passes them what the cache returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from boresight.modules import named_cache
from boresight.rollout.continuing import KnownTurns
from boresight.rollout.decode import Prefill, is_worth_dropping
from boresight.rollout.states import BranchStates, prompt_cache, separate_rows
from boresight.state_layers import state_layers
from boresight.types import Prompt

ATTENTION = "boresight_sampling"
"""The name of the attention function below. The text model uses it while a token is sampled."""

GROW_STEPS = 32
"""Fewest steps that a cache grows by. It grows by at least half, so that copying stays a constant share of the work."""

ENCODED_TOGETHER = 16
"""Prompts, or branches that go on, whose images are encoded by one call: their features are in memory until each has run."""


class BranchLayer(CacheLayerMixin):
    """One layer's keys and values.

    Args:
        prompts: this layer of each prompt's own cache, each [1, heads, length, D].
        window: how many tokens back a query attends, itself included; None means all.
    """

    is_sliding = False

    def __init__(self, prompts: Sequence[CacheLayerMixin], window: int | None) -> None:
        super().__init__()
        self.prompt_keys = _stacked([layer.keys for layer in prompts])  # pyright: ignore[reportArgumentType]
        self.prompt_values = _stacked([layer.values for layer in prompts])  # pyright: ignore[reportArgumentType]
        self.window = window
        self.steps = 0
        self.bias: Tensor | None = None
        """[G, 1, 1, 1, P + T] −∞ at keys that the next queries must not attend to; None if they attend to all."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        groups, heads, k, size = key_states.shape
        self.branch_keys = key_states.new_empty(groups, heads, k, GROW_STEPS, size)
        self.branch_values = value_states.new_empty(groups, heads, k, GROW_STEPS, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Add one token to each branch ([G, heads, K, D]) and pass the layer itself to `decoding_attention`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.steps == self.branch_keys.shape[3]:
            room = max(GROW_STEPS, self.steps // 2)
            self.branch_keys, self.branch_values = (
                torch.cat([held, held.new_empty(*held.shape[:3], room, held.shape[4])], 3)
                for held in (self.branch_keys, self.branch_values)
            )
        self.branch_keys[:, :, :, self.steps] = key_states
        self.branch_values[:, :, :, self.steps] = value_states
        self.steps += 1
        return self, self

    def to(self, *args: Any, **kwargs: Any) -> BranchLayer:
        """The layer itself: a later layer that shares these keys moves them to its device (Gemma 3n and 4)."""
        return self

    def select(self, rows: Tensor, columns: Tensor, width: int) -> None:
        """Keep the groups `rows` ([G′]), their branches `columns` ([G′, K′]), and the first `width` tokens of the prompts."""
        self.prompt_keys = self.prompt_keys[rows, :, :width]
        self.prompt_values = self.prompt_values[rows, :, :width]
        if self.is_initialized:
            self.branch_keys, self.branch_values = (
                held.transpose(1, 2)[rows[:, None], columns].transpose(1, 2)
                for held in (self.branch_keys, self.branch_values)
            )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[2] + self.steps

    def get_max_length(self) -> int:
        return -1


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """[G, heads, P, D] from tensors [1, heads, ≤ P, D]; padding is zero, since 0 × NaN is NaN."""
    first, width = tensors[0], max(tensor.shape[2] for tensor in tensors)
    stacked = first.new_zeros(len(tensors), first.shape[1], width, first.shape[3])
    for row, tensor in zip(stacked, tensors, strict=True):
        row[:, : tensor.shape[2]] = tensor[0]
    return stacked


def decoding_attention(
    module: nn.Module,
    query: Tensor,
    key: BranchLayer,
    value: BranchLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token per branch to its prompt and to its branch.

    Args:
        query: [G, query heads, K, D].
        key: the layer that `update` returned; `value` is the same object.
        attention_mask: None; the layer's `bias` is the mask.

    Returns:
        [G, K, query heads, D].
    """
    layer = key
    groups, heads, k, size = query.shape
    width, kv_heads = layer.prompt_keys.shape[2], layer.prompt_keys.shape[1]
    # Query heads that share keys are multiplied together, so keys are never repeated.
    query = query.view(groups, kv_heads, heads // kv_heads, k, size).transpose(2, 3)
    query = query * (size**-0.5 if scaling is None else scaling)
    to_prompt = query.flatten(2, 3) @ layer.prompt_keys.mT
    to_branch = query @ layer.branch_keys[:, :, :, : layer.steps].mT
    scores = torch.cat([to_prompt.unflatten(2, (k, -1)), to_branch], -1)
    if layer.bias is not None:
        scores += layer.bias
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    mixed = (weights[..., :width].flatten(2, 3) @ layer.prompt_values).unflatten(2, (k, -1))
    mixed = mixed + weights[..., width:] @ layer.branch_values[:, :, :, : layer.steps]
    return mixed.transpose(1, 2).flatten(2, 3), None


AttentionInterface.register(ATTENTION, decoding_attention)


@contextmanager
def _attending(config: PreTrainedConfig) -> Iterator[None]:
    """Use `decoding_attention` in the text model. transformers builds no mask for a name without a mask function."""
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


class Branches:
    """A `decode.Decoder` that samples completions as branches: N = G × K slots, those of one prompt side by side.

    Args:
        prefill: of the model.
        prompts: with their earlier turns.
        num_completions: K.
        known: what is kept of prompts between turns; None: each prompt runs from its beginning.
    """

    def __init__(
        self, prefill: Prefill, prompts: Sequence[Prompt], num_completions: int, known: KnownTurns | None = None
    ) -> None:
        # Caches without a config keep the whole prompt in sliding layers too: what a window hides depends on the prompt's length.
        started: list[tuple[Tensor, int, Any]] = []
        for start in range(0, len(prompts), ENCODED_TOGETHER):
            batch = prompts[start : start + ENCODED_TOGETHER]
            prefill.encode([prompt.image_sets if known is None else known.unread_sets(prompt) for prompt in batch])
            for prompt in batch:
                cache = prompt_cache(prefill.layer_types)
                started.append(prefill(prompt, cache) if known is None else known(prefill, prompt, cache))
        prefill.encode([])
        self.model, self.config, self._axes, device = prefill.model, prefill.config, prefill.axes, prefill.device
        self.logits = torch.cat([logits for logits, _, _ in started]).repeat_interleave(num_completions, 0)
        self._starts = torch.tensor([position for _, position, _ in started], device=device)
        self._lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=device)
        kinds = prefill.layer_types
        self._layers = [
            BranchStates(layers, num_completions)
            if isinstance(layers[0], LinearAttentionLayer)
            else BranchLayer(
                layers, self.config.sliding_window if kinds and kinds[index] == "sliding_attention" else None
            )
            for index, layers in enumerate(zip(*(cache.layers for _, _, cache in started), strict=True))
        ]
        self._attention = [layer for layer in self._layers if isinstance(layer, BranchLayer)]
        self._state_layers = state_layers(self.model.get_decoder())
        self._cache = Cache(layers=list(self._layers))
        self._k = num_completions
        self._measure()

    def step(self, tokens: Tensor) -> Tensor:
        ids = tokens.view(-1, self._k)
        steps = self._attention[0].steps
        positions = (self._starts + steps)[:, None].expand_as(ids)
        biases = {window: self._bias(window, steps) for window in {layer.window for layer in self._attention}}
        for layer in self._attention:
            layer.bias = biases[layer.window]
        with _attending(self.config), separate_rows(self._state_layers, self._k):
            output = self.model(
                input_ids=ids,
                position_ids=positions.expand(self._axes, -1, -1) if self._axes else positions,
                use_cache=True,
                **named_cache(self.model, self._cache),
            )
        return output.logits.flatten(0, 1)

    def compact(self, alive: Tensor) -> Tensor | None:
        alive = alive.view(-1, self._k)
        counts = alive.sum(1)
        rows, k = counts.nonzero()[:, 0], int(counts.max())
        if not is_worth_dropping(len(rows) * k, alive.numel()):
            return None
        columns = alive[rows].int().argsort(dim=1, descending=True, stable=True)[:, :k]
        kept = rows[:, None] * self._k + columns
        self._lengths, self._starts, self._k = self._lengths[rows], self._starts[rows], k
        self._measure()
        for layer in self._layers:
            layer.select(rows, columns, self._longest)
        return kept.flatten()

    def _measure(self) -> None:
        self._longest, shortest = int(self._lengths.max()), int(self._lengths.min())
        self._ragged = shortest < self._longest

    def _bias(self, window: int | None, steps: int) -> Tensor | None:
        """The mask of this step's queries, which hides padding and keys outside the window."""
        sees_back = window is None or self._longest + steps < window
        if sees_back and not self._ragged:
            return None
        place = torch.arange(self._longest, device=self._lengths.device)
        length = self._lengths[:, None]
        prompt = place < length
        branch = torch.ones(len(self._lengths), steps + 1, dtype=torch.bool, device=place.device)
        if window is not None:
            prompt = prompt & (length + steps - place < window)
            branch[:, : max(0, steps + 1 - window)] = False
        seen = torch.cat([prompt, branch], 1)[:, None, None, None]
        return torch.zeros(seen.shape, dtype=self._attention[0].prompt_keys.dtype, device=seen.device).masked_fill_(
            ~seen, -torch.inf
        )
