"""Metrics accumulated over micro-batches, steps and ranks, and reduced once per log line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["mean", "sum", "min", "max"]
Sample = tuple[Kind, float, float]
Gather = Callable[[Any], list[Any]]
"""Every rank's argument as a list, on every rank."""
Steps = list[tuple[int, dict[str, Sample]]]


@dataclass(slots=True)
class _Parts:
    kind: Kind
    values: list[Tensor]
    counts: list[Tensor]


class MeanMetrics:
    """Accumulates metrics by name until they are flushed.

    Adding never waits for the device: tensors are reduced on their device and read at `flush`. NaN is left out, as a reward
    that does not apply is left out of its mean.
    """

    def __init__(self) -> None:
        self._parts: dict[str, _Parts] = {}
        self._ends: list[tuple[int, dict[str, int], Mapping[str, Tensor | float]]] = []
        self._taken: dict[str, int] = {}

    def mean(self, name: str, values: Tensor | float, *, weight: Tensor | float = 1.0) -> None:
        """Add to a mean.

        Args:
            name: the name in the log.
            values: a number, or a tensor.
            weight: of each value; broadcast to `values`. With a mask, the mean is over what it selects.
        """
        values, weight = _tensor(values), _tensor(weight)
        weight = torch.where(values.isnan(), 0, weight.expand_as(values))
        self._add(name, "mean", (values.nan_to_num() * weight).sum(), weight.sum())

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to a mean what is summed already.

        Args:
            total: the sum of the values.
            count: how many values that is, or the sum of their weights.
        """
        total, count = _tensor(total), _tensor(count)
        self._add(name, "mean", torch.where(total.isnan(), 0, total), torch.where(total.isnan(), 0, count))

    def sum(self, name: str, values: Tensor | float) -> None:
        """Add to a count or a total."""
        values = _tensor(values)
        self._add(name, "sum", values.nansum(), _tensor(values.numel()))

    def min(self, name: str, values: Tensor | float) -> None:
        """Add to a minimum. +∞, the minimum of nothing, does not change it."""
        values = _tensor(values)
        self._add(name, "min", values.masked_fill(values.isnan(), math.inf).flatten().min(), (values < math.inf).sum())

    def max(self, name: str, values: Tensor | float) -> None:
        """Add to a maximum. −∞, the maximum of nothing, does not change it."""
        values = _tensor(values)
        self._add(
            name, "max", values.masked_fill(values.isnan(), -math.inf).flatten().max(), (values > -math.inf).sum()
        )

    def _add(self, name: str, kind: Kind, value: Tensor, count: Tensor) -> None:
        parts = self._parts.setdefault(name, _Parts(kind, [], []))
        if parts.kind != kind:
            raise AssertionError(f"metric {name!r} is a {parts.kind}, and was given a {kind}")
        parts.values.append(value)
        parts.counts.append(count)

    def absorb(self, other: MeanMetrics) -> None:
        """Add all that another accumulated."""
        for name, parts in other._parts.items():
            for value, count in zip(parts.values, parts.counts, strict=True):
                self._add(name, parts.kind, value, count)

    def copied(self) -> MeanMetrics:
        """Another one with all that this one accumulated. Nothing waits for the device."""
        other = MeanMetrics()
        other.absorb(self)
        other._ends, other._taken = [*self._ends], self._taken
        return other

    def exchange(self, other: MeanMetrics) -> None:
        """Exchange all that was accumulated with another."""
        self._parts, other._parts = other._parts, self._parts
        self._ends, other._ends = other._ends, self._ends
        self._taken, other._taken = other._taken, self._taken

    def state_dict(self) -> dict[str, Any]:
        """All that was accumulated, as plain numbers: name → its kind, values and counts. Their sums are the same to the bit."""
        return {
            name: {
                "kind": parts.kind,
                "values": [value.item() for value in parts.values],
                "counts": [count.item() for count in parts.counts],
            }
            for name, parts in self._parts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._parts = {
            name: _Parts(parts["kind"], [*map(_tensor, parts["values"])], [*map(_tensor, parts["counts"])])
            for name, parts in state.items()
        }
        self._ends, self._taken = [], self._lengths()

    def end_step(self, step: int, **also: Tensor | float) -> None:
        """Note for `take_steps` that all that was added since the last call is of this optimizer step.

        Args:
            also: metrics of the step alone, which `flush` leaves out; over ranks their mean is taken.
        """
        self._ends.append((step, self._lengths(), also))

    def take_steps(
        self, wanted: Callable[[str], bool] = lambda name: True, gather: Gather | None = None
    ) -> list[tuple[int, dict[str, float]]]:
        """(step, name → value) of each step that ended since the last call, on all ranks. What `flush` returns stays as it is.

        `flush` forgets the steps that ended before it: take them first.

        Args:
            wanted: whether the metric of this name is returned.
            gather: as for `flush`. All ranks have ended the same steps.
        """
        own: Steps = []
        for step, ends, also in self._ends:
            found: dict[str, Sample] = {name: ("mean", float(value), 1.0) for name, value in also.items()}
            for name, end in ends.items():
                if wanted(name) and end > (start := self._taken.get(name, 0)):
                    found[name] = _joined(self._parts[name], slice(start, end))
            own.append((step, found))
            self._taken = ends
        self._ends = []
        ranks = [own] if gather is None else gather(own)
        return [(step, _reduced([dict(rank)[step] for rank in ranks])) for step, _ in own]

    def _lengths(self) -> dict[str, int]:
        return {name: len(parts.values) for name, parts in self._parts.items()}

    def flush(self, prefix: str = "", gather: Gather | None = None) -> dict[str, float]:
        """Name → value over all that was added since the last flush, on all ranks.

        Args:
            prefix: put before every name: ``"eval_"`` for an evaluation.
            gather: ``lambda part: gather_object([part])`` of accelerate. Ranks may have different names. None for one rank.

        Returns:
            Names with no value but NaN are left out.
        """
        own: dict[str, Sample] = {name: _joined(parts) for name, parts in self._parts.items()}
        self._parts.clear()
        self._ends, self._taken = [], {}
        return _reduced([own] if gather is None else gather(own), prefix)


def _tensor(value: Tensor | float) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    return (
        tensor
        if tensor.is_floating_point()
        else tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
    )


def _joined(parts: _Parts, span: slice = slice(None)) -> Sample:
    values = [value.item() for value in parts.values[span]]
    combine = {"mean": math.fsum, "sum": math.fsum, "min": min, "max": max}[parts.kind]
    return parts.kind, combine(values), math.fsum(count.item() for count in parts.counts[span])


def _reduced(ranks: Sequence[Mapping[str, Sample]], prefix: str = "") -> dict[str, float]:
    """Name → value over all ranks; without the names that have no value but NaN."""
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {
        prefix + name: value
        for name in names
        if (value := _result([rank[name] for rank in ranks if name in rank])) is not None
    }


def _result(samples: list[Sample]) -> float | None:
    kinds, values, counts = zip(*samples, strict=True)
    count = math.fsum(counts)
    if count == 0:
        return None
    match kinds[0]:
        case "mean":
            return math.fsum(values) / count
        case "sum":
            return math.fsum(values)
        case "min":
            return min(values)
        case _:
            return max(values)
