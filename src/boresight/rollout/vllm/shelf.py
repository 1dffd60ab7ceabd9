"""Tensors that an engine in the same process takes as they are, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

SHELF: dict[str, Callable[[], Iterable[tuple[str, Tensor]]]] = {}
"""Name of an update → its tensors by checkpoint name."""
