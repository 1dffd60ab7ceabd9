from __future__ import annotations

from .surface import FILE, surface


def test_no_flag_appears_changes_or_goes_unnoticed() -> None:
    assert surface() == FILE.read_text(), "flags changed: if that is meant, run .venv/bin/python tests/cli/surface.py"
