"""Statistics of scores: several models, the same questions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from boresight.compare.accuracy import interval_of_mean, mcnemar_p, wilson_interval


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean score of the questions."""

    value: float
    interval: tuple[float, float] | None
    """95 %: by Wilson where every score is 0 or 1, else by the normal approximation; None for a single graded score."""
    asked: int
    is_share: bool
    """Whether every score is 0 or 1, and the mean the share of right answers."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Two sets of scores of the same questions."""

    better: int
    """Questions with a better score in the second set."""
    worse: int
    equal: int
    gain: float
    """The mean of the second set less that of the first, over the questions in both."""

    @property
    def p(self) -> float:
        """Two-sided, of the exact sign test: the probability of a split of `better` and `worse` at least as uneven if a question is as
        likely to become better as worse. With scores of 0 and 1 it is McNemar's exact test.

        Reference:
            Dixon and Mood, The statistical sign test, JASA 41 (1946).
        """
        return mcnemar_p(self.better, self.worse)


def mean_score(scores: Collection[float]) -> Mean | None:
    """The mean with its interval; None without a score."""
    values = list(scores)
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    is_share = all(value in (0, 1) for value in values)
    interval = wilson_interval(round(sum(values)), len(values)) if is_share else interval_of_mean(values)
    return Mean(mean, interval, len(values), is_share)


def paired(first: Mapping[int, float], second: Mapping[int, float], *, higher_is_better: bool = True) -> Paired | None:
    """How scores change from the first set to the second; None where no question has both.

    Args:
        first: number of the question → score.
        second: the same of the other set.
        higher_is_better: false for a metric of errors.
    """
    pairs = [(first[number], second[number]) for number in first if number in second]
    if not pairs:
        return None
    rose = sum(after > before for before, after in pairs)
    fell = sum(after < before for before, after in pairs)
    better, worse = (rose, fell) if higher_is_better else (fell, rose)
    gain = math.fsum(after - before for before, after in pairs) / len(pairs)
    return Paired(better, worse, len(pairs) - rose - fell, gain)
