"""Where every token of a group stands."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from boresight.modules import matching_arguments
from boresight.types import Completion, Prompt

Positions = Int[Tensor, "L"] | Int[Tensor, "A L"]
"""[L] for models that count tokens, [A, L] for those whose rotary embeddings have axes (M-RoPE)."""


def sequence_positions(base: nn.Module, prompt: Prompt, completion: Completion | None = None) -> Positions:
    """Positions of the prompt's tokens, followed by the completion's when one is given.

    Multimodal rotary models (M-RoPE: the Qwen-VL families) give every token a position on several axes, which restart after
    each image: the model computes them. For all others tokens are counted.

    Args:
        base: the model without its head.
        completion: needed only where images stand inside it (K = 1).

    Returns:
        [P] or, for M-RoPE models, [A, P]; P includes the completion's tokens if one is given.
    """
    ids, types = prompt.ids, prompt.token_types
    if completion is not None:
        ids = torch.cat([ids, completion.ids])
        own = completion.token_types
        types = torch.cat([types, torch.zeros_like(completion.ids) if own is None else own])
    rope_index: Any = getattr(base, "get_rope_index", None)
    if rope_index is None:
        return torch.arange(len(ids), device=ids.device)
    grids = matching_arguments(rope_index, prompt.vision)
    positions, _ = rope_index(ids[None], mm_token_type_ids=types[None], **grids)
    return positions[:, 0]


def branch_positions(
    prompt_positions: Int[Tensor, "P"] | Int[Tensor, "A P"], length: int
) -> Int[Tensor, "C"] | Int[Tensor, "A C"]:
    """Positions of a completion of `length` text tokens: they go on from the prompt's largest position.

    Not from its length: an image of 256 tokens may take up 16 positions only.

    Returns:
        [C] or [A, C], as `prompt_positions` has it.
    """
    start = prompt_positions.max() + 1
    steps = torch.arange(length, device=prompt_positions.device) + start
    return steps if prompt_positions.ndim == 1 else steps.expand(len(prompt_positions), -1)
