from __future__ import annotations

import json
import math

from boresight.report import StepLines, read_lines


def test_lines_are_valid_json_and_come_back(tmp_path):
    lines = StepLines(tmp_path / "run" / "metrics.jsonl")
    lines.add(3, {"loss": 0.5, "grad_norm": math.nan, "note": "é"})
    lines.add(4, {"loss": -math.inf, "count": 7})
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text and "é" in text
    expected = [{"step": 3, "loss": 0.5, "grad_norm": None, "note": "é"}, {"step": 4, "loss": None, "count": 7}]
    assert [json.loads(line) for line in text.splitlines()] == expected == read_lines(lines.path)


def test_odd_characters_leave_the_file_readable(tmp_path):
    """Those that end a line for some readers, and half a surrogate pair, which no file can hold."""
    lines = StepLines(tmp_path / "metrics.jsonl")
    for step, name in enumerate(["a\u2028b", "c\u2029", "d\x85e\x1c\x0b", "f\ud800", "中文"], 1):
        lines.add(step, {name: float(step)})
    assert [list(line)[1] for line in read_lines(lines.path)] == [
        "a\u2028b",
        "c\u2029",
        "d\x85e\x1c\x0b",
        "f\ud800",
        "中文",
    ]
    text = lines.path.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 5 and "中文" in text
    assert lines.discard_after(2) == 3
    assert [line["step"] for line in read_lines(lines.path)] == [1, 2]


def test_later_and_half_written_lines_go(tmp_path):
    lines = StepLines(tmp_path / "some.jsonl")
    for step in (2, 4, 6):
        lines.add(step, {})
    with lines.path.open("a") as file:
        file.write('{"step": 1')
    assert [line["step"] for line in read_lines(lines.path)] == [2, 4, 6]
    assert lines.discard_after(4) == 2
    assert [line["step"] for line in read_lines(lines.path)] == [2, 4]
    assert lines.discard_after(4) == 0


def test_other_ranks_keep_no_file(tmp_path):
    lines = StepLines(None)
    lines.add(1, {"loss": 1.0})
    assert lines.discard_after(0) == 0
    assert read_lines(tmp_path / "absent.jsonl") == []
