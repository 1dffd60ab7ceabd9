"""Statistics of right and wrong answers: several models, the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Mark = bool | None
"""Right, wrong, or unmarked: the reward did not apply to the answer, or failed on it."""

Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def wilson_interval(right: int, asked: int, z: float = Z95) -> tuple[float, float]:
    r"""The confidence interval of a share, where `right` of `asked` are right.

    $\frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}$

    Args:
        right: 0 to `asked`.
        asked: at least 1.
        z: the standard normal's quantile; the default makes it a 95 % interval.

    Reference:
        Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share = right / asked
    middle = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    scale = 1 + z * z / asked
    # With none right the bound is exactly 0, and with all exactly 1, which rounding would miss.
    low = 0.0 if right == 0 else (middle - spread) / scale
    high = 1.0 if right == asked else (middle + spread) / scale
    return low, high


def mcnemar_p(fixed: int, broken: int) -> float:
    r"""The probability of flips at least as lopsided if both models are equally good (two-sided, exact).

    $\min\left(1,\ 2\sum_{k\le\min(f,b)}\binom{f+b}{k} 2^{-(f+b)}\right)$. Questions on which the models agree do not count.

    Args:
        fixed: questions that only the second model answers right.
        broken: questions that only the first does.

    Reference:
        McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947); exact by
        the binomial distribution.
    """
    flips = fixed + broken
    tail = sum(math.comb(flips, k) for k in range(min(fixed, broken) + 1))
    # In integers until the last division: 2^-1100 is no float.
    return min(1.0, 2 * tail / 2**flips)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Right answers out of those marked."""

    right: int
    marked: int
    unmarked: int = 0

    @property
    def share(self) -> float | None:
        """None where nothing is marked."""
        return self.right / self.marked if self.marked else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, by Wilson."""
        return wilson_interval(self.right, self.marked) if self.marked else None


@dataclass(frozen=True, slots=True)
class Flips:
    """Where two models differ, over the questions on which both are marked."""

    first: str
    second: str
    fixed: tuple[int, ...]
    """Places of the questions that the second model answers right and the first wrong."""
    broken: tuple[int, ...]
    """Places of the questions that the first model answers right and the second wrong."""
    both_right: int
    both_wrong: int

    @property
    def p(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar_p(len(self.fixed), len(self.broken))

    @property
    def gain(self) -> float | None:
        """The second model's share of right answers less the first's; None where no question is marked for both."""
        both = len(self.fixed) + len(self.broken) + self.both_right + self.both_wrong
        return (len(self.fixed) - len(self.broken)) / both if both else None


def accuracy(marks: Sequence[Mark]) -> Accuracy:
    """The accuracy of one model's marks."""
    unmarked = sum(mark is None for mark in marks)
    return Accuracy(sum(mark is True for mark in marks), len(marks) - unmarked, unmarked)


def accuracy_by_kind(marks: Sequence[Mark], kinds: Sequence[str]) -> dict[str, Accuracy]:
    """The accuracy on each kind of question, kinds by name."""
    return {
        kind: accuracy([mark for mark, own in zip(marks, kinds, strict=True) if own == kind])
        for kind in sorted(set(kinds))
    }


def flips(first: str, second: str, marks: Mapping[str, Sequence[Mark]]) -> Flips:
    """How the marks of the questions change from one model to the other."""
    pairs = list(zip(marks[first], marks[second], strict=True))
    return Flips(
        first,
        second,
        fixed=tuple(place for place, pair in enumerate(pairs) if pair == (False, True)),
        broken=tuple(place for place, pair in enumerate(pairs) if pair == (True, False)),
        both_right=pairs.count((True, True)),
        both_wrong=pairs.count((False, False)),
    )


def all_flips(marks: Mapping[str, Sequence[Mark]]) -> list[Flips]:
    """The flips between every two models, in the order in which the models come."""
    return [flips(first, second, marks) for first, second in combinations(marks, 2)]


def pass_at_k(right: int, sampled: int, k: int) -> float:
    r"""The probability that at least one of `k` answers is right, unbiased, where `right` of `sampled` are.

    $1 - \binom{n-c}{k} / \binom{n}{k}$

    Args:
        right: c, 0 to n.
        sampled: n, at least k.
        k: at least 1.

    Reference:
        Chen et al., Evaluating large language models trained on code, arXiv 2107.03374, eq. 1.
    """
    if not 1 <= k <= sampled:
        raise ValueError(f"pass@{k} needs at least {k} answers, and there are {sampled}")
    return 1 - math.comb(sampled - right, k) / math.comb(sampled, k)


@dataclass(frozen=True, slots=True)
class PassRates:
    """Several sampled answers to each question."""

    mean: float | None
    """The mean accuracy of a single answer; None where no answer is marked."""
    interval: tuple[float, float] | None
    """95 % of the mean, questions being independent and the answers of one question not; None with fewer than two questions."""
    at: Mapping[int, float | None]
    """k → pass@k, the mean over the questions with at least k marked answers."""


def pass_rates(marks: Sequence[Sequence[Mark]]) -> PassRates:
    """Mean accuracy and pass@k, for k = 1, 2, 4 … and the number of samples. Unmarked answers are left out.

    Args:
        marks: question → the marks of its answers.
    """
    most = max(map(len, marks), default=0)
    counts = [(sum(mark is True for mark in own), sum(mark is not None for mark in own)) for own in marks]
    shares = [right / marked for right, marked in counts if marked]
    ks = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    at = {k: _mean([pass_at_k(right, marked, k) for right, marked in counts if marked >= k]) for k in ks}
    low, high = interval_of_mean(shares) or (None, None)
    interval = None if low is None or high is None else (max(0.0, low), min(1.0, high))
    return PassRates(_mean(shares), interval, at)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def interval_of_mean(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % of the mean of independent values, by the normal approximation; None with fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = Z95 * math.sqrt(variance / len(values))
    return mean - half, mean + half
