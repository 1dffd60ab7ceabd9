"""`boresight report` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from boresight.cli import BAD_INPUT, DONE, main
from tests.report.runs import write_run


def test_the_page_is_written_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "grpo", num_steps=1)
    assert main(["report", str(run)]) == DONE
    assert (run / "report.html").stat().st_size > 4e6  # plotly.js is within
    assert str(run / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert main(["report", str(run), "--output", str(tmp_path / "pages" / "a.html"), "--max-completions", "4"]) == DONE
    assert (tmp_path / "pages" / "a.html").exists()


def test_what_makes_no_sense_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "gone")]) == BAD_INPUT
    assert "no such folder" in capsys.readouterr().err
    run = write_run(tmp_path / "grpo", num_steps=1)
    assert main(["report", str(run), "--port", "8000"]) == BAD_INPUT
    assert "add --watch" in capsys.readouterr().err
    assert main(["report", str(run), "--watch", "--output", "a.html"]) == BAD_INPUT
    assert "leave out --output" in capsys.readouterr().err
    assert main(["report", str(run), "--max-completions", "0"]) == BAD_INPUT
    assert "--max-completions 0" in capsys.readouterr().err
