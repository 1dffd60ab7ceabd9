"""The benchmarks that start vLLM, as tests/benchmarks/test_quick.py runs the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.conftest import Main, benchmark_main

from .conftest import START_S

__all__ = ["benchmark_main"]


def test_engines(benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_main("engines", "--json", str(tmp_path / "records.json"), "--rounds", "1")
    (record,) = json.loads((tmp_path / "records.json").read_text())
    assert record["samples"] == 6
    assert {side: len(seconds) for side, seconds in record["seconds"].items()} == {"trl": 1, "ours": 1, "vllm": 1}
    assert "boresight, vLLM" in capsys.readouterr().out


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize(
    "engines", [("transformers", "colocate"), pytest.param(("colocate", "server", "lag"), marks=pytest.mark.soak)]
)
def test_engines_learn(
    engines: tuple[str, ...], benchmark_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--output-dir", str(tmp_path), "--json", str(tmp_path / "records.json"))
    benchmark_main("engines_learn", *files, "--engines", *engines)
    records = {record["engine"]: record for record in json.loads((tmp_path / "records.json").read_text())}
    assert tuple(records) == engines
    # One checkpoint, asked before training; and each engine samples what the trainer would.
    assert len({record["before"] for record in records.values()}) == 1
    assert all(record["drift_max"] < 1e-3 for record in records.values())
    assert "max drift" in capsys.readouterr().out
