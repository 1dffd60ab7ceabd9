"""How often a model answers the demo's questions right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boresight.compare.accuracy import wilson_interval
from boresight.rewards.extract import tagged_answer
from boresight.rewards.notation import plain


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers out of all, in total and by kind of question."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        return self.right.total() / max(self.asked.total(), 1)

    @property
    def by_kind(self) -> dict[str, float]:
        return {kind: self.right[kind] / asked for kind, asked in sorted(self.asked.items())}

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share (Wilson's score interval)."""
        return wilson_interval(self.right.total(), self.asked.total())


def accuracy(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Accuracy:
    """The accuracy of `texts` on `rows`: a text is right when what it puts between its answer tags is the solution."""
    result = Accuracy()
    for row, text in zip(rows, texts, strict=True):
        answer = tagged_answer(text)
        result.asked[row["kind"]] += 1
        result.right[row["kind"]] += answer is not None and plain(answer) == plain(row["solution"])
    return result
