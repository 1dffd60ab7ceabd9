"""Corrections of a reward that need only the completion's length."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def soft_overlong_punishment(
    length: Int[Tensor, "B"], max_completion_length: int, soft_punish_cache: int
) -> Float[Tensor, "B"]:
    r"""0 up to $L - c$ tokens, then falling evenly to −1 at $L$, and −1 beyond.

    Args:
        length: tokens of each completion.
        max_completion_length: $L$; DAPO: 20,480.
        soft_punish_cache: $c$, the width of the slope in tokens; DAPO: 4,096.

    Reference:
        DAPO, arXiv 2503.14476, eq. 13.
    """
    return ((max_completion_length - soft_punish_cache - length) / soft_punish_cache).clamp(-1.0, 0.0)
