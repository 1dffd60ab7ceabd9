"""A program in place of the Python that has lmms-eval."""

from __future__ import annotations

import sys
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"
"""lmms-eval's own files, cut to what is read of them: MODEL and MODEL-blind."""

START = """\
import json, shutil, sys
here, fixtures = {here!r}, {fixtures!r}
assert sys.argv[1:3] == ["-m", "boresight.evaluate.inside.child"]
job = json.load(open(sys.argv[3]))


def say(what):
    print(json.dumps(what), flush=True)


"""


def python_that(folder: Path, body: str) -> str:
    """A program that does `body` with its job, `say` and the folders `here` and `fixtures`."""
    script = folder / "stand_in.py"
    script.write_text(START.format(here=str(folder), fixtures=str(FIXTURES)) + body)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n')
    program.chmod(0o755)
    return str(program)
