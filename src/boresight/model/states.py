"""Branches that continue their prompt's state: layers with a recurrence or a causal convolution in a packed row.

A layer of this kind (Gated DeltaNet, Mamba 2, a short convolution) is not rewritten here. Its own forward runs as in generation, along
a `Walk`: on the prompts with an empty cache, then on the branches with a cache that holds their prompts' states. Such a cache
(`CarriedStates`) is transformers' own class, except that it keeps tensors with their graph instead of buffers that are written in place.
So the gradient of every branch flows back through the state into its prompt, and a kernel that transformers uses is used here too.

The state of a layer is whatever it stores in a cache: the recurrent state, and the last inputs of its convolution.

`install` sets `forward` of each such layer (the class is not edited), and a hook on its decoder layer that hands it the `BranchTable` of
the forward. Decoder layers receive the table with all other keyword arguments, also when gradient checkpointing runs them again, but some
(LFM2) do not pass it on. Without a table the layer's own forward runs, so one model serves shared rows, ordinary rows and generation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import LinearAttentionLayer

from boresight.model.attention import BranchTable
from boresight.model.walk import Batch
from boresight.state_layers import state_layers

CACHE_NAMES = ("cache", "cache_params", "past_key_values")
"""What layers call the cache. From 5.24, transformers calls it `cache` everywhere."""


class CarriedStates(LinearAttentionLayer):
    """The states of one layer after the sequences of a batch, with their graph.

    Args:
        real: false at padding on the left of the sequences ([B, W]), where the convolution's input is set to zero. transformers sets the
            layer's input to zero there, which is not enough for a layer whose input projection has a bias.
    """

    def __init__(self, real: Tensor | None = None) -> None:
        super().__init__()
        self.real = real
        # transformers then uses no kernel that writes into the convolution's window.
        self.record_past = True

    @classmethod
    def expanded(cls, prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
        """The states from which branches start: for each of them, that of its prompt.

        Args:
            prompts: after each batch of prompts.
            sources: [B] the number of each branch's prompt among all prompts.
        """
        states = cls()
        for held, own in (
            ([prompt.conv_states for prompt in prompts], states.conv_states),
            ([prompt.recurrent_states for prompt in prompts], states.recurrent_states),
        ):
            for index, first in held[0].items():
                if first is not None:
                    own[index] = torch.cat([each[index] for each in held]).index_select(0, sources)  # pyright: ignore[reportArgumentType]
                    states.has_previous_state[index] = True
        return states

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Keep the last `conv_kernel_size` inputs of a convolution.

        Args:
            conv_states: [B, D, W] its new inputs.
            state_idx: which of the layer's convolutions.

        Returns:
            [B, D, …] the new inputs after those that were kept before.
        """
        if self.real is not None:
            conv_states = conv_states * self.real[:, None]
        before = self.conv_states.get(state_idx)
        inputs = conv_states if before is None else torch.cat([before, conv_states], -1)
        size = conv_kernel_size or inputs.shape[-1]
        self.conv_states[state_idx] = pad(inputs, (max(0, size - inputs.shape[-1]), 0))[..., -size:]
        self.has_previous_state[state_idx] = True
        return inputs

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Keep a recurrent state [B, …]."""
        self.recurrent_states[state_idx] = recurrent_states
        self.has_previous_state[state_idx] = True
        return recurrent_states


def run_packed(layer: Any, own: Callable[..., Tensor], arguments: dict[str, Any], table: BranchTable) -> Tensor:
    """A layer's outputs for one packed row.

    Args:
        layer: one that `STATE_LAYERS` names.
        own: its own forward.
        arguments: of that forward, by name; among them the row's hidden states [1, L, H].
        table: the row's groups.

    Returns:
        [1, L, H].
    """
    cache_name = next(name for name in CACHE_NAMES if name in inspect.signature(own).parameters)
    hidden = arguments["hidden_states"][0]
    walk = table.walk

    def run(batch: Batch, states: CarriedStates, mask: Tensor | None) -> Tensor:
        # The layer looks its states up under its own number.
        layers: list[Any] = [states] * (layer.layer_idx + 1)
        cache = Cache(layers=layers)
        given = {"hidden_states": hidden[batch.places], "attention_mask": mask, cache_name: cache}
        return own(**arguments | given).flatten(0, 1)

    after = [CarriedStates(batch.real) for batch in walk.prompts]
    outputs = [run(batch, states, batch.real) for batch, states in zip(walk.prompts, after, strict=True)]
    # Padding on the right comes after all that counts.
    outputs += [run(batch, CarriedStates.expanded(after, batch.sources), None) for batch in walk.branches]
    return torch.cat(outputs)[walk.restore][None]


def _forward(layer: Any, own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """The forward of an installed layer."""
    table: BranchTable | None = layer.branches
    kwargs.pop("branches", None)
    if table is None:
        return own(*args, **kwargs)
    table.state_visits += 1
    bound = inspect.signature(own).bind(*args, **kwargs).arguments
    bound |= bound.pop("kwargs", {})
    return run_packed(layer, own, bound, table)


def _hand_over(decoder_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a decoder layer's forward: give its layers with a state the table, or None."""
    layer: Any
    for layer in state_layers(decoder_layer):
        layer.branches = kwargs.get("branches")


def install(model: PreTrainedModel) -> int:
    """Route the text model's layers with a state through this file. A second call changes nothing.

    Returns:
        How many such layers there are.
    """
    found = 0
    for decoder_layer in getattr(model.get_decoder(), "layers", ()):
        layers = state_layers(decoder_layer)
        found += len(layers)
        if not layers or hasattr(layers[0], "branches"):
            continue
        decoder_layer.register_forward_pre_hook(_hand_over, with_kwargs=True)
        layer: Any
        for layer in layers:
            layer.branches = None
            layer.forward = partial(_forward, layer, layer.forward)
    return found
