"""docs/differences.md beside TRL itself."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import trl

import boresight
from boresight.trainer.config import default_of
from tests.docs.pages import ROOT, prose

FILE = ROOT / "docs" / "differences.md"
PAGE = prose(FILE)
NAMED = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
CONFIGS = ("SFTConfig", "DPOConfig", "GRPOConfig")
NOT_A_CHOICE = {"output_dir"}
"""Where a run is written has a default of its own in each project."""


def options(module: object, config: str) -> dict[str, object]:
    return {option.name: default_of(option) for option in fields(getattr(module, config))}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_that_is_absent_is_on_the_page(config: str) -> None:
    absent = options(trl, config).keys() - options(boresight, config).keys()
    assert sorted(absent - NAMED) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_every_other_default_is_on_the_page(config: str) -> None:
    theirs, ours = options(trl, config), options(boresight, config)
    other = {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]}
    assert sorted(other - NAMED - NOT_A_CHOICE) == []


def test_the_options_that_only_boresight_has_are_all_on_the_page() -> None:
    (listed,) = re.findall(r"Only here: (.+?)\.\n", PAGE, re.DOTALL)
    ours = set().union(*(options(boresight, config) for config in CONFIGS))
    theirs = set().union(*(options(trl, config) for config in CONFIGS))
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(ours - theirs)


def test_no_option_said_to_be_absent_is_here() -> None:
    """Of the table of configurations, whose rows say `absent`."""
    table = PAGE[PAGE.index("| option of TRL |") : PAGE.index("Only here:")]
    said = {name for row in table.splitlines() if "absent" in row for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert said
    here = {name for config in CONFIGS for name in options(boresight, config)}
    both = {"loss_type", "disable_dropout", "max_length"}
    """Absent from one configuration, there in another: the row says which."""
    assert sorted((said & here) - both) == []
