"""Means, their intervals, and the sign test, against values worked by hand."""

from __future__ import annotations

import math

import pytest

from boresight.evaluate.scores import Mean, Paired, mean_score, paired

Z = 1.959963984540054


def test_the_mean_of_right_and_wrong_has_wilsons_interval() -> None:
    found = mean_score([1, 0, 1.0, True])
    assert found is not None and found.is_share and (found.value, found.asked) == (0.75, 4)
    middle, spread = 0.75 + Z**2 / 8, Z * math.sqrt(0.75 * 0.25 / 4 + Z**2 / 64)
    assert found.interval == pytest.approx(((middle - spread) / (1 + Z**2 / 4), (middle + spread) / (1 + Z**2 / 4)))
    assert found.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)


def test_the_mean_of_graded_scores_has_the_normal_interval() -> None:
    """1, 2, 6: the mean is 3, the variance (4 + 1 + 9) / 2 = 7, and the interval may leave 0 to 1."""
    found = mean_score([1, 2, 6])
    assert found is not None and not found.is_share
    half = Z * math.sqrt(7 / 3)
    assert found.interval == pytest.approx((3 - half, 3 + half))


def test_too_few_scores() -> None:
    assert mean_score([]) is None
    assert mean_score([0.3]) == Mean(0.3, None, 1, False)


FIRST = {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.5, 4: 2.0, 5: 1.0, 9: 7.0}
SECOND = {0: 1.0, 1: 0.5, 2: 1.0, 3: 0.75, 4: 3.0, 5: 0.0, 8: 1.0}


def test_paired_scores_by_hand() -> None:
    """Of the six questions in both, four rise, one falls: 2 (1 + 5) / 2⁵. The equal one does not count, nor do those of one set alone."""
    found = paired(FIRST, SECOND)
    assert found == Paired(better=4, worse=1, equal=1, gain=pytest.approx((1 + 0.5 + 0.25 + 1 - 1) / 6))
    assert found.p == 12 / 32
    back = paired(SECOND, FIRST)
    assert back == Paired(better=1, worse=4, equal=1, gain=pytest.approx(-1.75 / 6)) and back.p == found.p


def test_of_errors_fewer_are_better() -> None:
    """The gain keeps its sign: it is what the metric does."""
    found = paired(FIRST, SECOND, higher_is_better=False)
    assert found == Paired(better=1, worse=4, equal=1, gain=pytest.approx(1.75 / 6))


def test_nothing_in_common_and_nothing_changed() -> None:
    assert paired({1: 1.0}, {2: 1.0}) is None
    same = paired(FIRST, FIRST)
    assert same == Paired(0, 0, 7, 0.0) and same.p == 1
