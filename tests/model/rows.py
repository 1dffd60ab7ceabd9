"""Packed rows of chosen lengths, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from boresight.model.packing import GroupSpan, PackedRow


def row_of(shapes: list[tuple[int, list[int]]], types: Tensor | None = None) -> PackedRow:
    """A row of groups, each given by the tokens of its prompt and of its completions."""
    spans, start = [], 0
    for prompt, branches in shapes:
        spans.append(GroupSpan(start, prompt, tuple(branches)))
        start += prompt + sum(branches)
    nothing = torch.zeros(start, dtype=torch.long)
    return PackedRow(
        tuple(spans), nothing, nothing, nothing if types is None else types, nothing, nothing, nothing[None].bool()
    )
