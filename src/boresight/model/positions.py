"""Position ids of every token of a group."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from boresight.own_forward import joined_vision, rope_positions, token_inputs_of
from boresight.types import Completion, HasImages, Prompt

Positions = Int[Tensor, "L"] | Int[Tensor, "A L"]
"""[L] for models that count tokens, [A, L] for models whose rotary embeddings have A axes (M-RoPE)."""


def sequence_positions(base: nn.Module, prompt: Prompt, completion: Completion | None = None) -> Positions:
    """Positions of the prompt's tokens, followed by the completion's if one is given.

    Multimodal rotary models (M-RoPE: the Qwen-VL families) give every token a position on several axes, which restart after
    each image. The model computes them. For all other models, tokens are counted.

    Args:
        base: the model without its head.
        completion: needed only if it contains images.

    Returns:
        [P] or, for M-RoPE models, [A, P]; P includes the completion's tokens if one is given.
    """
    ids, tokens = prompt.ids, token_inputs_of(prompt)
    if completion is not None:
        own = token_inputs_of(completion)
        ids = torch.cat([ids, completion.ids])
        tokens = {name: torch.cat([values, own[name]]) for name, values in tokens.items() if name in own}
    sets: list[HasImages] = [*prompt.image_sets, *(completion.image_sets if completion else ())]
    positions = rope_positions(base, ids, tokens, joined_vision(sets, pixels=False))
    return torch.arange(len(ids), device=ids.device) if positions is None else positions


def positions_within(
    base: nn.Module, prompt: Prompt, prompt_positions: Positions, completion: Completion
) -> Int[Tensor, "C"] | Int[Tensor, "A C"]:
    """Positions of a completion that may contain images: the model computes those of the whole sequence then."""
    if completion.token_types is None:
        return branch_positions(prompt_positions, len(completion.ids))
    return sequence_positions(base, prompt, completion)[..., len(prompt.ids) :]


def branch_positions(
    prompt_positions: Int[Tensor, "P"] | Int[Tensor, "A P"], length: int
) -> Int[Tensor, "C"] | Int[Tensor, "A C"]:
    """Positions of a completion of `length` text tokens. They continue after the prompt's largest position.

    The prompt's length would be wrong: an image of 256 tokens may take up only 16 positions.

    Returns:
        [C] or [A, C], like `prompt_positions`.
    """
    start = prompt_positions.max() + 1
    steps = torch.arange(length, device=prompt_positions.device) + start
    return steps if prompt_positions.ndim == 1 else steps.expand(len(prompt_positions), -1)
