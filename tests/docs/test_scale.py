"""The tables of seconds, prices and memory are what the planner says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_pages_have_the_planners_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import scale

    sys.modules.pop("scale")
    *table, _, assumed = scale.lines()
    page = (ROOT / "docs" / "how-to" / "many-gpus.md").read_text()
    assert "\n".join(table) in page, "run .venv/bin/python docs/scale.py, and put its table on the page"
    assert assumed in page
    memory = "\n".join(scale.hardware())
    assert memory in (ROOT / "docs" / "install.md").read_text(), "run docs/scale.py, and put its second table there"
    # As published: 3.75, 8.29 and 33.5 billion weights.
    weights = [scale.published(name).num_weights / 1e9 for name in scale.MODELS]
    assert weights == pytest.approx([3.75, 8.29, 33.5], rel=0.005)
