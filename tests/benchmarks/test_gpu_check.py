"""`make gpu-check` on a machine without CUDA: the same code with tiny sizes; and what becomes of parts that fail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import ROOT, Main


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_parts.rows as rows  # in benchmarks/, which is no package

    return rows


def checked(benchmark_main: Main, tmp_path: Path, *names: str) -> list[dict[str, Any]]:
    files = ("--json", str(tmp_path / "check.json"), "--markdown", str(tmp_path / "check.md"))
    benchmark_main("gpu_check", *files, "--only", *names)
    rows = json.loads((tmp_path / "check.json").read_text())["rows"]
    assert len((tmp_path / "check.md").read_text().splitlines()) == 2 + len(rows)
    return rows


def test_the_first_part_and_what_needs_cuda(benchmark_main: Main, tmp_path: Path) -> None:
    rows = checked(benchmark_main, tmp_path, "first", "engine")
    assert not [row for row in rows if row["status"] == "failed"]
    kernel = next(row for row in rows if row["case"] == "kernel")["figures"]
    assert kernel["heads of 128"] in ("CpuKernel", "CudaKernel")
    merged = [row["figures"] for row in rows if row["case"].endswith(": exact")]
    assert len(merged) == 4 and all(0 < figures["Qwen2.5-VL-3B, merged"] < 0.05 for figures in merged)
    assert [row["status"] for row in rows if row["part"] == "engine"] == ["not run"] * 2


@pytest.mark.soak
def test_every_part_runs_to_its_end(benchmark_main: Main, tmp_path: Path) -> None:
    names = ("first", "exactness", "update", "trl", "head", "steps", "fsdp", "engine")
    rows = checked(benchmark_main, tmp_path, *names)
    assert not [row for row in rows if row["status"] == "failed"]
    assert {row["part"] for row in rows} == set(names)


def test_a_case_that_fails_leaves_the_next_to_run(parts: Any, tmp_path: Path) -> None:
    def breaks() -> Any:
        raise RuntimeError("out of memory\nand more")

    def lacks() -> Any:
        raise parts.LackingError("needs CUDA")

    def wrong() -> Any:
        raise parts.BoundError("off by 2", {"error": 2.0})

    def cases(setting: Any) -> Iterator[Any]:
        yield from {"breaks": breaks, "lacks": lacks, "wrong": wrong, "works": lambda: {"seconds": 1.5}}.items()

    file = tmp_path / "part.jsonl"
    parts.run_part("mine", cases, parts.Setting.here(tiny=True), file)
    found = {row.case: row for row in parts.from_json(file.read_text() + '{"part": "cut o')}
    assert {name: row.status for name, row in found.items()} == {
        "breaks": "failed",
        "lacks": "not run",
        "wrong": "failed",
        "works": "ok",
    }
    assert found["breaks"].note == "RuntimeError: out of memory"
    assert found["wrong"].figures == {"error": 2.0}
    assert "| mine | works | ok | seconds 1.5 |" in parts.markdown(found.values())


@pytest.mark.parametrize(
    ("name", "seconds", "problem"), [("head", 0.01, "ran out of its"), ("no_such_part", 60, "exit status")]
)
def test_a_part_that_ends_badly_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, seconds: float, problem: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check
    from gpu_parts import Part

    rows = gpu_check.run_apart(Part(name, seconds, ""), True, tmp_path)
    assert [row.status for row in rows] == ["failed"] and problem in rows[0].note
    assert str(ROOT / "benchmarks") in sys.path


def test_all_parts_together_take_less_than_eight_minutes(parts: Any) -> None:
    from gpu_parts import PARTS

    assert sum(part.seconds for part in PARTS) < 480 and PARTS[0].name == "first" and PARTS[0].seconds <= 60
    assert all(callable(part.load()) for part in PARTS if part.name in ("first", "fsdp", "engine"))
