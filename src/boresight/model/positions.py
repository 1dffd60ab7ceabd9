"""Where every token of a group stands."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from boresight.types import Completion, Prompt


def accepted(function: Callable[..., object], options: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of `options` that `function` names among its parameters."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def sequence_positions(base: nn.Module, prompt: Prompt, completion: Completion | None = None) -> Tensor:
    """Positions of the prompt's tokens, followed by the completion's when one is given.

    Multimodal rotary models (M-RoPE: the Qwen-VL families) give every token a position on three axes, which restart after
    each image; they are asked for theirs. Everyone else counts.

    Args:
        base: the model without its head.
        completion: needed only where images stand inside it (K = 1).

    Returns:
        [P] for models that count, [3, P] for M-RoPE models; P includes the completion's tokens if one is given.
    """
    ids, types = prompt.ids, prompt.token_types
    if completion is not None:
        ids = torch.cat([ids, completion.ids])
        own = completion.token_types
        types = torch.cat([types, torch.zeros_like(completion.ids) if own is None else own])
    rope_index = getattr(base, "get_rope_index", None)
    if rope_index is None:
        return torch.arange(len(ids), device=ids.device)
    grids = accepted(rope_index, dict(prompt.vision))
    positions, _ = rope_index(ids[None], mm_token_type_ids=types[None], **grids)
    return positions[:, 0]


def branch_positions(prompt_positions: Tensor, length: int) -> Tensor:
    """Positions of a completion of `length` text tokens: they go on from the prompt's largest position.

    Not from its length: an image of 256 tokens may take up 16 positions only.

    Returns:
        [C] or [3, C], as `prompt_positions` has it.
    """
    start = prompt_positions.max() + 1
    steps = torch.arange(length, device=prompt_positions.device) + start
    return steps if prompt_positions.ndim == 1 else steps.expand(3, -1)
