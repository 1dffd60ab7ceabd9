"""Layers with a state while completions are sampled as branches.

A state (of a recurrence, or of a causal convolution) is small and of fixed size, and each completion changes it with every token. So,
unlike keys and values, it is copied once for each completion when the prompt has run:

    states   [G·K, …]   one for each completion, those of a prompt side by side

The other layers see a step's K tokens of a prompt as one row [G, K, H]; to these layers they are G·K rows of one token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from boresight.state_layers import STATE_KINDS


class BranchStates(LinearAttentionLayer):
    """One layer's states.

    Args:
        prompts: this layer of each prompt's own cache.
        num_completions: K.
    """

    def __init__(self, prompts: Sequence[LinearAttentionLayer], num_completions: int) -> None:
        first = prompts[0]
        super().__init__(number_of_states=first.number_of_states)
        for name in ("conv_states", "recurrent_states"):
            for index, state in getattr(first, name).items():
                if state is not None:
                    states = torch.cat([getattr(prompt, name)[index] for prompt in prompts])
                    getattr(self, name)[index] = states.repeat_interleave(num_completions, 0)
        self.is_conv_states_initialized = dict(first.is_conv_states_initialized)
        self.is_recurrent_states_initialized = dict(first.is_recurrent_states_initialized)
        self.has_previous_state = dict(first.has_previous_state)
        self.conv_kernel_size = dict(first.conv_kernel_size)
        self.device, self.dtype = first.device, first.dtype
        self._k = num_completions

    def select(self, rows: Tensor, columns: Tensor, width: int) -> None:
        """Keep the groups `rows` ([G′]) and their branches `columns` ([G′, K′]); see `BranchLayer.select`."""
        self.reorder_cache((rows[:, None] * self._k + columns).flatten())  # pyright: ignore[reportArgumentType]
        self._k = columns.shape[1]


def prompt_cache(layer_types: Sequence[str]) -> DynamicCache:
    """An empty cache for a prompt. It keeps all keys and values, in sliding layers too.

    Args:
        layer_types: of the text config; empty if all layers are of attention.
    """
    cache: Any = DynamicCache()
    if STATE_KINDS & set(layer_types):
        cache.layers = [LinearAttentionLayer() if kind in STATE_KINDS else DynamicLayer() for kind in layer_types]
    return cache


@contextmanager
def separate_rows(layers: Sequence[nn.Module], num_completions: int) -> Iterator[None]:
    """Let these layers read every branch as a row of its own.

    Args:
        layers: those with a state.
        num_completions: K.
    """

    def split(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].flatten(0, 1)[:, None], *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"].flatten(0, 1)[:, None]}

    def join(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output[:, 0].unflatten(0, (-1, num_completions))

    handles = [layer.register_forward_pre_hook(split, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(join) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
