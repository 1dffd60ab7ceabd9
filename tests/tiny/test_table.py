"""What `make families` finds, for a few families here and for all of them in a soak."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tiny import ALL
from tests.tiny.table import METHODS, Outcome, page, tried


@pytest.mark.parametrize(
    ("family", "layout", "sampling"), [("ovis2", "shared, by group", "branches"), ("mllama", "plain", "plain")]
)
def test_a_family_of_each_kind_trains_by_every_method(family: str, layout: str, sampling: str) -> None:
    outcome = tried(family)
    assert outcome.trains, outcome
    assert (outcome.layout, outcome.sampling) == (layout, sampling)
    assert float(outcome.exactness) <= 1e-5 and outcome.notes


@pytest.mark.soak
@pytest.mark.parametrize("family", sorted(ALL))
def test_every_family_trains_by_every_method(family: str) -> None:
    outcome = tried(family)
    assert outcome.trains, outcome
    assert float(outcome.exactness) <= 1e-5


def test_the_page_counts_what_trains() -> None:
    good = Outcome("a", "shared", "branches", "1e-06", dict.fromkeys(METHODS, "yes"), "yes, 0e+00")
    rows = replace(good, family="b", layout="rows", notes=["its layers | cannot branch"])
    bad = replace(good, family="c", methods=good.methods | {"DPO": "TypeError: x"})
    changed = replace(good, family="d", reload="no, 1e-01")
    text = page([good, rows, bad, changed])
    assert "**2 of 4 families train by all three methods with an equal reload; 1 of them share prompts.**" in text
    assert "| b | rows | 1e-06 | yes | yes | yes | branches | yes, 0e+00 | its layers \\| cannot branch |" in text
    assert [Outcome.read(outcome.row()).row() for outcome in (good, rows, bad)] == [
        each.row() for each in (good, rows, bad)
    ]
