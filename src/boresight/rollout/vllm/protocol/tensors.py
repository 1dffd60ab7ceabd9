"""How tensors pass from trainer to engine on one machine, and the numbers that compare them afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

Tensors = Callable[[], Iterable[tuple[str, Tensor]]]
"""Returns the tensors of an update with their saved names. It may be called several times."""

SHARED_TENSORS: dict[str, Tensors] = {}
"""Name of an update → its tensors, for an engine in this process."""

GOLDEN = 1.618033988749895


@dataclass
class TensorLocation:
    """Where the tensors of an update are. Exactly one field is set."""

    shared: str | None = None
    """A key of `SHARED_TENSORS`."""
    path: str | None = None
    """A safetensors file."""


def memory_folder() -> Path:
    """A folder in memory (/dev/shm) if it is writable, otherwise the temporary folder."""
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def fixed_vector(size: int, *, phase: float, like: Tensor) -> Tensor:
    """[size] cos(φ i + phase), in the dtype and on the device of `like`. Neighbours differ, and both sides compute it without a seed."""
    places = torch.arange(size, dtype=torch.float64)
    return torch.cos(places * GOLDEN + phase).to(like.device, like.dtype)


def projected(matrix: Callable[[Tensor], Tensor], rows: int, columns: int, like: Tensor) -> float:
    """r₂ · f(r₁) for fixed vectors, where f(r) = W r + b: a number that distinguishes one matrix from another.

    Args:
        matrix: f, from [columns] to [rows].
        like: any tensor with the dtype and device that f computes in.
    """
    output = matrix(fixed_vector(columns, phase=0.5, like=like)).reshape(-1).float()
    return float(output @ fixed_vector(rows, phase=1.5, like=output))
