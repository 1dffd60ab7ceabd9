"""The rewards of some completions by every function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boresight.errors import RewardError
from boresight.rewards.function import LARGEST
from boresight.types import PerSequence


@dataclass(frozen=True, slots=True)
class RewardTable:
    """The reward of every completion by every function, completions in the order of their groups."""

    names: tuple[str, ...]
    values: Float[Tensor, "B R"]
    """[B, R] NaN where a function does not apply to a completion or failed on it."""
    failed: Bool[Tensor, "B"]
    """[B] true where some function failed: the completion is then unscored, whatever the others returned."""
    weights: Float[Tensor, "R"]
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Every number that a function passed to `log_metric`."""
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """[B] per name: the columns that functions passed to `log_extra`."""

    @property
    def scored(self) -> Bool[Tensor, "B"]:
        """[B] true where no function failed and at least one applies."""
        return ~self.failed & ~self.values.isnan().all(dim=1)

    @property
    def total(self) -> PerSequence:
        """[B] weighted sum of the rewards that apply; NaN where unscored."""
        return (self.values * self.weights).nansum(dim=1).masked_fill(~self.scored, math.nan)

    @property
    def by_name(self) -> dict[str, PerSequence]:
        """[B] per function: its rewards."""
        return dict(zip(self.names, self.values.unbind(dim=1), strict=True))

    def __add__(self, below: RewardTable) -> RewardTable:
        """This table with the rows of another, of the same functions, below its own."""
        num_own, num_more = len(self.values), len(below.values)
        extra = {
            name: [*self.extra.get(name, [None] * num_own), *below.extra.get(name, [None] * num_more)]
            for name in dict.fromkeys((*self.extra, *below.extra))
        }
        metrics = {
            name: [*self.metrics.get(name, ()), *below.metrics.get(name, ())]
            for name in dict.fromkeys((*self.metrics, *below.metrics))
        }
        values, failed = torch.cat([self.values, below.values]), torch.cat([self.failed, below.failed])
        return RewardTable(self.names, values, failed, self.weights, metrics, extra)

    def check_total(self, rows: Sequence[int]) -> None:
        """Refuse weighted sums that are so large that their squares, which group statistics take, would not be finite.

        Args:
            rows: the data set's row of every completion.

        Raises:
            RewardError: a sum beyond `LARGEST`.
        """
        total = (self.values.double() * self.weights.double()).nansum(dim=1)
        large = (total.abs() > LARGEST).nonzero()[:, 0].tolist()
        if large:
            raise RewardError(
                f"the weighted sum of the rewards of completion {large[0]} (row {rows[large[0]]}) is "
                f"{float(total[large[0]]):g}, beyond ±{LARGEST:g}: lower reward_weights, or the rewards."
            )
