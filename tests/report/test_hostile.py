"""Markup, control characters and damaged files: shown or named, never obeyed, and no reason to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boresight.cli import main
from boresight.errors import DataError
from boresight.report import StepLines, read_completions, read_lines
from boresight.report.run import read_run
from boresight.terminal import printable

from .runs import write_run

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x00\x9b2J\u202e"


def test_control_characters_reach_no_terminal() -> None:
    shown = printable(f"a\tb\nc{ESCAPES}\ud800[red]é漢")
    assert not [char for char in shown if char != "\n" and not char.isprintable()]
    assert shown.startswith("a b\nc�[31mred") and shown.endswith("[red]é漢")


@pytest.mark.parametrize("name", ["[bold]run", "x[/]", "[/x]", "a\x1b[31mb"])
def test_a_path_is_shown_as_it_is_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / name
    run.mkdir(parents=True)
    StepLines(run / "metrics.jsonl").add(1, {"loss": 1.0})
    assert main(["report", str(run)]) == 0
    assert printable(run / "report.html") in capsys.readouterr().out
    assert (run / "report.html").exists()


@pytest.mark.parametrize("name", ["a\u2028b", "a\u0085b", "a\x1cb", "a\ud800b", "a\\nb"])
def test_odd_characters_leave_the_file_readable(name: str, tmp_path: Path) -> None:
    lines = StepLines(tmp_path / "metrics.jsonl")
    lines.add(1, {name: 1.0})
    lines.add(2, {"loss": 2.0})
    read = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in read] == [1, 2] and read[0][name] == 1.0
    assert lines.discard_after(1) == 1


def test_damaged_files_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    num_rows = len(read_completions(run))
    good = {"step": 1, "loss": 0.5}
    (run / "metrics.jsonl").write_bytes(b"\xff\x00\n" + json.dumps(good).encode() + b"\n[1]\n{}\n")
    (run / "verdicts.jsonl").write_text('{"step": 1, "verd\n')
    first = min((run / "completions").glob("step_*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    found = read_run(run)
    assert found.metrics == [good] and found.completions is not None and 0 < len(found.completions) < num_rows
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "metrics.jsonl: 3 of 4 lines are damaged and left out (the first is line 1)" in said
    assert "verdicts.jsonl: 1 of 1 lines" in said and f"completions/{first.name} cannot be read" in said
    with pytest.raises(DataError, match=f"{first.name} cannot be read"):
        read_completions(run)
