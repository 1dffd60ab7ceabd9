from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from .surface import FILE, THEIRS, surface

LOCK = Path(__file__).parents[2] / "requirements-dev.lock"


def test_no_flag_appears_changes_or_goes_unnoticed() -> None:
    now, then = surface(), FILE.read_text()
    if f"transformers=={version('transformers')} " not in LOCK.read_text():  # another release declares other options
        now, then = (re.sub(rf"(?m)^.*{re.escape(THEIRS)}.*\n", "", text) for text in (now, then))
    assert now == then, "flags changed: if that is meant, run .venv/bin/python tests/cli/surface.py"
