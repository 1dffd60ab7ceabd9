"""What `make families` finds, for a few families here and for all of them in a soak."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from boresight.errors import ModelError
from tests.tiny import ALL, REFUSED, build_tiny
from tests.tiny.table import METHODS, Outcome, page, rows, said, trainer_of, tried


@pytest.mark.parametrize(
    ("family", "layout", "sampling"), [("ovis2", "shared, by group", "branches"), ("mllama", "plain", "plain")]
)
def test_a_family_of_each_kind_trains_by_every_method(family: str, layout: str, sampling: str) -> None:
    outcome = tried(family)
    assert outcome.trains, outcome
    assert (outcome.layout, outcome.sampling) == (layout, sampling)
    assert float(outcome.exactness) <= 1e-5 and outcome.notes


@pytest.mark.soak
@pytest.mark.parametrize("family", sorted(ALL.keys() - REFUSED))
def test_every_family_trains_by_every_method(family: str) -> None:
    outcome = tried(family)
    assert outcome.trains, outcome
    assert float(outcome.exactness) <= 1e-5


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_in_one_sentence(family: str, tmp_path: Path) -> None:
    data = [{**row, "completion": said("red", row)} for row in rows([1], strings=True)]
    with pytest.raises(ModelError) as error:
        trainer_of("SFT", build_tiny(family, tmp_path / "model", vocab_size=512), data, str(tmp_path / "out"))
    text = str(error.value)
    assert re.fullmatch(rf"\w+ cannot be trained: [^.]*{re.escape(REFUSED[family])}[^.]*\.", text), text


def test_the_page_counts_what_trains() -> None:
    good = Outcome("a", "shared", "branches", "1e-06", dict.fromkeys(METHODS, "yes"), "yes, 0e+00")
    slow = replace(good, family="b", layout="rows", notes=["its layers | cannot branch"])
    bad = replace(good, family="c", methods=good.methods | {"DPO": "TypeError: x"})
    changed = replace(good, family="d", reload="no, 1e-01")
    refused = replace(good, family="e", layout="–", methods=dict.fromkeys(METHODS, "refused"), reload="–")
    text = page([good, slow, bad, changed, refused])
    assert (
        "**2 of 5 families train by all three methods with an equal reload; 1 of them share prompts. 1 are refused"
        in text
    )
    assert "| b | rows | 1e-06 | yes | yes | yes | branches | yes, 0e+00 | its layers \\| cannot branch |" in text
    assert [Outcome.read(outcome.row()).row() for outcome in (good, slow, bad)] == [
        each.row() for each in (good, slow, bad)
    ]
