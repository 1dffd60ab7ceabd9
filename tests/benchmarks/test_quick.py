"""Every benchmark runs: `--quick` is the same code with tiny sizes. Those that start vLLM are in tests/rollout/vllm/test_benchmarks.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boresight.trainer.memory_table import CHOICES
from tests.benchmarks.conftest import ROOT, Main

ENGINES = {"engines", "engines_learn"}
"""Benchmarks that start vLLM."""


def test_no_benchmark_is_left_out() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text()}
    # `digits` and `gpu_check` have tests of their own.
    assert (
        scripts
        == {
            "attention",
            "busy",
            "digits",
            "efficiency",
            "gpu_check",
            "memory",
            "objectives",
            "overlap",
            "planner",
            "preferences",
            "rows",
            "versus_trl",
        }
        | ENGINES
    )


def test_attention(benchmark_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("attention")
    assert "pieces merged" in capsys.readouterr().out


def test_versus_trl(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two sides compute the same log-probabilities, and the work that boresight saves is the work that it says it saves."""
    benchmark_main("versus_trl", "--json", str(tmp_path / "records.json"), "--markdown", str(tmp_path / "table.md"))
    records = {record["name"]: record for record in json.loads((tmp_path / "records.json").read_text())}
    assert len(records) == 9
    for record in records.values():
        assert record["logp_difference"] is None or record["logp_difference"] < 1e-4
        assert record["seconds"]["trl"] > 0 and record["memory_ratio"] > 1
    assert (
        records["update"]["logp_difference"] is not None and records["DPO precomputed"]["logp_difference"] is not None
    )
    assert {name: record["encodes"] for name, record in records.items()} == {
        # Three completions, in the old, the reference and the policy's pass.
        "update": {"trl": 9, "boresight": 3},
        "update frozen recompute": {"trl": 6, "boresight": 1},
        # The prompt's image once; the tool's is another in each of three completions.
        "update two turns": {"trl": 6, "boresight": 4},
        "update hybrid": {"trl": 3, "boresight": 1},
        "update hybrid MoE": {"trl": 3, "boresight": 1},
        "sample": {"trl": 6, "boresight": 2},
        "step": {"trl": 12, "boresight": 4},
        "DPO precomputed": {"trl": 4, "boresight": 1},
        "MPO LoRA": {"trl": 4, "boresight": 1},
    }
    two_turns = records["update two turns"]
    branch = two_turns["tokens"]["trl"] // 3 - 60
    assert two_turns["logp_difference"] is not None and branch > 4 + 4
    assert two_turns["tokens"]["boresight"] == 60 + 3 * branch
    assert records["update hybrid"]["tokens"] == {"trl": 3 * 64, "boresight": 60 + 3 * 4}
    assert records["sample"]["tokens"] == {"trl": 2 * 3 * 63, "boresight": 2 * (60 + 3 * 3)}
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 9
    assert "MPO LoRA" in capsys.readouterr().out


def test_objectives(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods, files = ("grpo", "dapo", "gspo"), ("--output-dir", str(tmp_path), "--json", str(tmp_path / "runs.json"))
    benchmark_main("objectives", "--methods", *methods, *files)
    runs = {run["method"]: run for run in json.loads((tmp_path / "runs.json").read_text())}
    assert tuple(runs) == methods
    # Equal compute: every method learns from as many completions.
    assert {run["work"]["completions"] for run in runs.values()} == {4 * 2 * 2}
    assert all(list(run["right"]) == ["0", "4"] for run in runs.values())
    assert "What it cost" in capsys.readouterr().out


def test_preferences(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("preferences", "--json", str(tmp_path / "models.json"))
    models = {record["model"]: record for record in json.loads((tmp_path / "models.json").read_text())}
    assert list(models) == ["SFT", "DPO", "MPO"]
    assert all(
        0 <= models[name]["preference_accuracy"] <= 1 and models[name]["chosen_logps"] for name in ("DPO", "MPO")
    )
    assert "repetition" in capsys.readouterr().out


def test_rows(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("rows", "--json", str(tmp_path / "rows.json"))
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["rows"] == 1200 and found["first"]["loss"] == found["second"]["loss"] > 0
    assert "second start" in capsys.readouterr().out


def test_memory(benchmark_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """What tensors take is what the table says; 8-bit states of small tensors are kept in 32 bits, so theirs is more."""
    pytest.importorskip("torchao")
    benchmark_main("memory")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    errors = {row[0].removeprefix("| "): float(row[-1].rstrip("| ").rstrip("%")) for row in rows}
    assert errors.keys() == CHOICES.keys()
    for name, error in errors.items():
        assert (0 <= error < 12) if "optimizer" in name else abs(error) < 0.1, name


def test_overlap(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("overlap", "--json", str(tmp_path / "rounds.json"))
    (found,) = json.loads((tmp_path / "rounds.json").read_text())
    assert found["lag 0"] == pytest.approx(found["sample"] + found["update"])
    assert min(found["sample"], found["update"], found["lag 1"]) > 0
    assert "lag 1 / max(sample" in capsys.readouterr().out


def test_busy(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("busy", "--json", str(tmp_path / "runs.json"))
    (found,) = json.loads((tmp_path / "runs.json").read_text())
    assert found["ratio"] == pytest.approx(found["busy"] / found["idle"])
    assert "one core busy" in capsys.readouterr().out


def test_planner(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Activations are within 15 % of what torch holds, with gradient checkpointing and without."""
    benchmark_main("planner", "--repeats", "1", "--json", str(tmp_path / "lines.json"))
    lines = json.loads((tmp_path / "lines.json").read_text())
    assert [line["checkpointing"] for line in lines] == [True, False]
    for line in lines:
        assert line["said_bytes"] == pytest.approx(line["bytes"], rel=0.15)
        assert line["said_seconds"] > 0 and line["seconds"] > 0
    assert lines[1]["bytes"] > 1.3 * lines[0]["bytes"]
    assert "bytes: median error" in capsys.readouterr().out


@pytest.mark.timeout(300)
def test_efficiency(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two real processes beside one."""
    benchmark_main("efficiency", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["efficiency"] == pytest.approx(found["one"] / found["two"])
    assert found["planned"] > found["one"] and found["link"] > 0
    assert min(found["one computing"], found["two computing"]) > 0
    assert "efficiency" in capsys.readouterr().out
