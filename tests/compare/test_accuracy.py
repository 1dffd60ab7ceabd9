"""Accuracy, intervals and flips against tables worked by hand, and against what defines them."""

from __future__ import annotations

import math
from itertools import combinations, product
from statistics import NormalDist

import pytest

from boresight.compare.accuracy import (
    Z95,
    accuracy,
    accuracy_by_kind,
    all_flips,
    flips,
    mcnemar_p,
    pass_at_k,
    pass_rates,
    wilson_interval,
)

MARKS = {
    "base": [True, True, False, False, False, None, True],
    "mpo": [True, False, True, True, False, True, None],
    "grpo": [True, True, True, False, True, False, True],
}


@pytest.mark.parametrize(
    ("right", "asked", "expected"),
    [(7, 10, (0.3968, 0.8922)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (590, 1000, (0.5592, 0.6201))],
)
def test_wilson_interval(right: int, asked: int, expected: tuple[float, float]) -> None:
    """0 of n reaches up to z²/(n + z²): 3.8415 / 13.8415."""
    assert wilson_interval(right, asked) == pytest.approx(expected, abs=1e-4)


def test_wilson_interval_solves_its_equation() -> None:
    """At either end the share lies z standard errors off, the error being that of the end: |p̂ − p| = z √(p (1 − p) / n)."""
    assert NormalDist().inv_cdf(0.975) == pytest.approx(Z95, abs=1e-14)
    for asked in (1, 2, 9, 250):
        for right in range(asked + 1):
            for end in wilson_interval(right, asked):
                assert (right / asked - end) ** 2 == pytest.approx(Z95**2 * end * (1 - end) / asked, abs=1e-12)


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (7, 2, 2 * (1 + 9 + 36) / 512),
        (3, 3, 1.0),
        (2, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(fixed: int, broken: int, p: float) -> None:
    assert mcnemar_p(fixed, broken) == p


def test_mcnemar_counts_the_ways_that_flips_may_fall() -> None:
    """Each of n flips goes either way: those at least as lopsided as what was seen, out of 2ⁿ."""
    for flips_seen in range(1, 11):
        ways = [sum(way) for way in product((0, 1), repeat=flips_seen)]
        for fixed in range(flips_seen + 1):
            lopsided = abs(2 * fixed - flips_seen)
            expected = sum(abs(2 * way - flips_seen) >= lopsided for way in ways) / len(ways)
            assert mcnemar_p(fixed, flips_seen - fixed) == expected


def test_mcnemar_of_more_flips_than_a_float_has_exponents_for() -> None:
    """By the normal distribution with its continuity correction, which is close where flips are many."""
    approximate = 2 * NormalDist().cdf(-(abs(1000 - 900) - 1) / math.sqrt(1900))
    assert mcnemar_p(1000, 900) == pytest.approx(approximate, rel=0.01)
    assert mcnemar_p(3000, 0) < 1e-300


def test_unmarked_answers_are_counted_apart() -> None:
    found = accuracy(MARKS["base"])
    assert (found.right, found.marked, found.unmarked, found.share) == (3, 6, 1, 0.5)
    nothing = accuracy([None, None])
    assert (nothing.share, nothing.interval, nothing.unmarked) == (None, None, 2)


def test_flips_leave_out_what_one_of_the_two_has_no_mark_for() -> None:
    found = flips("base", "mpo", MARKS)
    assert (found.fixed, found.broken, found.both_right, found.both_wrong) == ((2, 3), (1,), 1, 1)
    assert found.gain == pytest.approx(1 / 5)
    assert found.p == 1.0
    assert math.isclose(flips("base", "grpo", MARKS).p, 2 / 4)


def test_every_two_models_once() -> None:
    assert [(pair.first, pair.second) for pair in all_flips(MARKS)] == [
        ("base", "mpo"),
        ("base", "grpo"),
        ("mpo", "grpo"),
    ]


def test_turned_round_what_was_fixed_is_broken() -> None:
    there, back = flips("mpo", "grpo", MARKS), flips("grpo", "mpo", MARKS)
    assert (there.fixed, there.broken, there.p) == (back.broken, back.fixed, back.p)
    assert there.fixed == (1, 4) and there.broken == (3, 5)


def test_kinds_add_up() -> None:
    kinds = ["shape", "color", "shape", "color", "shape", "color", "shape"]
    found = accuracy_by_kind(MARKS["grpo"], kinds)
    assert list(found) == ["color", "shape"]
    assert (found["color"].right, found["color"].marked) == (1, 3)
    assert (found["shape"].right, found["shape"].marked) == (4, 4)


def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_hold_a_right_one() -> None:
    assert pass_at_k(1, 4, 2) == pytest.approx(0.5)  # 3 of the 6 pairs
    for sampled in range(1, 7):
        for right, k in product(range(sampled + 1), range(1, sampled + 1)):
            marks = [place < right for place in range(sampled)]
            choices = [any(chosen) for chosen in combinations(marks, k)]
            assert pass_at_k(right, sampled, k) == pytest.approx(sum(choices) / len(choices))
    with pytest.raises(ValueError, match="pass@3 needs at least 3 answers"):
        pass_at_k(1, 2, 3)


def test_rates_over_questions() -> None:
    """Shares ¼, 1, 0 and ½ (two of its answers are unmarked): mean 7/16; k = 4 is asked of three questions only."""
    found = pass_rates(
        [[True, False, False, False], [True] * 4, [False] * 4, [True, None, False, None]],
    )
    assert found.mean == pytest.approx(7 / 16)
    assert found.at == pytest.approx({1: 7 / 16, 2: (0.5 + 1 + 0 + 1) / 4, 4: 2 / 3})
    spread = math.sqrt(sum((share - 7 / 16) ** 2 for share in (0.25, 1, 0, 0.5)) / 3)
    assert found.interval == pytest.approx((max(0, 7 / 16 - Z95 * spread / 2), 7 / 16 + Z95 * spread / 2))
    assert pass_rates([[None, None, None]]).at == {1: None, 2: None, 3: None} and pass_rates([[True]]).interval is None
