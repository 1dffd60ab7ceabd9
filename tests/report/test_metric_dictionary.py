from __future__ import annotations

from pathlib import Path

import pytest

from boresight.report import PHASES
from boresight.report.metric_dictionary import ENTRIES, entry_for, page


def test_the_page_of_the_documentation_is_the_dictionary() -> None:
    """`python -m boresight.report.metric_dictionary > docs/reference/metrics.md` after a change."""
    written = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
    assert written.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("loss", "loss"),
        ("loss/sigmoid", "loss/<name>"),
        ("loss/bco_pair_weighted", "loss/<name>_weighted"),
        ("loss/bco_shift", "loss/bco_shift"),
        ("rewards/exact_answer_reward/mean", "rewards/<name>/mean"),
        ("rewards/chosen", "rewards/chosen"),
        ("eval_rewards/some/std", "rewards/<name>/std"),
        ("eval_my_own_set_reward", "reward"),
        ("eval_loss", "loss"),
        ("eval_runtime", "eval_runtime"),
        ("sampling/sampling_logp_difference/max/with_images", "sampling/sampling_logp_difference/max/with_images"),
    ],
)
def test_a_name_finds_its_entry(name: str, entry: str) -> None:
    found = entry_for(name)
    assert found is not None and found.name == entry


@pytest.mark.parametrize(
    "name", ["losses", "rewards/some/median", "rewards/a/b/mean", "evaluation_loss", "eval_nothing"]
)
def test_other_names_find_none(name: str) -> None:
    assert entry_for(name) is None


def test_every_entry_is_whole_and_is_found_by_its_own_name() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert entry.unit and entry.meaning and entry.healthy
        assert entry_for(entry.name.replace("<name>", "some")) == entry
    assert {f"time/{phase}_s" for phase in PHASES} <= {entry.name for entry in ENTRIES}
