"""The order in which a layer with a state runs a packed row: all prompts first, then the branches that continue them.

Attention can hide one branch from another by a mask. A layer with a state (a recurrence, or a causal convolution) cannot: it reads tokens
in their order, and its state after a token depends on all tokens before it. So the row is cut at its branch points and read in two
steps, each of them a few rectangles:

    prompts    [B, W]  padded on the left, so that every prompt's state is the one after its last token
    branches   [B, W]  padded on the right, each starting from the state of its own prompt

A rectangle holds sequences of similar lengths, so little padding is computed. The cost is P + K·C tokens, not K·(P + C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from boresight.model.packing import GroupSpan

SIMILAR = 0.75
"""A sequence joins a rectangle if it has at least this share of the longest one's length: at most a quarter of a rectangle is padding."""
SHORT = 64
"""Tokens up to which sequences count as equally long. transformers' reference kernels compute whole chunks of so many."""
MIN_BRANCH_WIDTH = 2
"""Layers treat a cached sequence of one token as a step of generation, whose kernels write in place and have no gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Sequences that a layer runs together."""

    places: Int[Tensor, "B W"]
    """Indices in the row; padding repeats index 0."""
    real: Bool[Tensor, "B W"] | None
    """False at padding; None where there is none."""
    sources: Int[Tensor, "B"]
    """For branches: which prompt, in the order in which prompts run, each continues. For prompts: their groups."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        real = None if self.real is None else self.real.to(device)
        return Batch(self.places.to(device), real, self.sources.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """All sequences of a packed row, in batches. A lone completion (K = 1) continues its prompt in one sequence, as in `BranchTable`."""

    prompts: tuple[Batch, ...]
    branches: tuple[Batch, ...]
    restore: Int[Tensor, "L"]
    """The index of each token of the row among the outputs of all batches, prompts first, each flattened."""

    @classmethod
    def of(cls, spans: Sequence[GroupSpan]) -> Walk:
        """The walk over a row of these groups."""
        prompts, branches, groups = [], [], []
        for number, span in enumerate(spans):
            lone = sum(span.branches) if len(span.branches) == 1 else 0
            prompts.append(torch.arange(span.start, span.start + span.prompt + lone))
            place = span.start + span.prompt
            for length in () if lone else span.branches:
                if length:
                    branches.append(torch.arange(place, place + length))
                    groups.append(number)
                place += length
        first = [_batch(prompts, chosen, chosen, left=True) for chosen in _similar(prompts)]
        order = torch.cat([batch.sources for batch in first]).argsort()
        then = [
            _batch(branches, chosen, [int(order[groups[index]]) for index in chosen]) for chosen in _similar(branches)
        ]
        return cls(tuple(first), tuple(then), _restore([*first, *then]))

    def to(self, device: torch.device) -> Walk:
        """The same walk on another device."""
        return replace(
            self,
            prompts=tuple(batch.to(device) for batch in self.prompts),
            branches=tuple(batch.to(device) for batch in self.branches),
            restore=self.restore.to(device),
        )


def _similar(sequences: Sequence[Tensor]) -> list[list[int]]:
    """The sequences' numbers, in lists of similar lengths, longest first."""
    found: list[list[int]] = []
    for index in sorted(range(len(sequences)), key=lambda index: -len(sequences[index])):
        if found and max(len(sequences[index]), SHORT) >= SIMILAR * len(sequences[found[-1][0]]):
            found[-1].append(index)
        else:
            found.append([index])
    return found


def _batch(sequences: Sequence[Tensor], chosen: Sequence[int], sources: Sequence[int], *, left: bool = False) -> Batch:
    width = max(len(sequences[index]) for index in chosen)
    width = width if left else max(width, MIN_BRANCH_WIDTH)
    places = torch.zeros(len(chosen), width, dtype=torch.long)
    real = torch.zeros(len(chosen), width, dtype=torch.bool)
    for row, index in enumerate(chosen):
        length = len(sequences[index])
        own = slice(width - length, width) if left else slice(length)
        places[row, own] = sequences[index]
        real[row, own] = True
    return Batch(places, None if real.all() else real, torch.tensor(sources))


def _restore(batches: Sequence[Batch]) -> Int[Tensor, "L"]:
    places = torch.cat([batch.places.flatten() for batch in batches])
    real = torch.cat(
        [
            torch.ones(batch.places.numel(), dtype=torch.bool) if batch.real is None else batch.real.flatten()
            for batch in batches
        ]
    )
    restore = torch.empty(int(real.sum()), dtype=torch.long)
    restore[places[real]] = torch.arange(len(places))[real]
    return restore
