"""A number that tells one matrix from another, computed alike on both sides of a sync."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GOLDEN = 1.618033988749895


def fixed_vector(size: int, *, phase: float, like: Tensor) -> Tensor:
    """[size] cos(φ i + phase), in the type and on the device of `like`: no two neighbours alike, and no generator to agree on."""
    places = torch.arange(size, dtype=torch.float64)
    return torch.cos(places * GOLDEN + phase).to(like.device, like.dtype)


def projected(matrix: Callable[[Tensor], Tensor], rows: int, columns: int, like: Tensor) -> float:
    """r₂ · f(r₁) for fixed vectors, where f(r) = W r + b.

    Args:
        matrix: f, from [columns] to [rows].
        like: any tensor of the type and on the device that f computes in.
    """
    output = matrix(fixed_vector(columns, phase=0.5, like=like)).reshape(-1).float()
    return float(output @ fixed_vector(rows, phase=1.5, like=output))
