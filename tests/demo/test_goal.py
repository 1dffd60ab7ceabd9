"""The main job's promise, at full length: too long for `make test`, run by `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from boresight.demo.job import run_demo


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_adds_fifteen_points(tmp_path: Path, seed: int) -> None:
    """On 1,000 balanced held-out questions; and plain transformers finds the same accuracy in the folder."""
    summary = run_demo(tmp_path, seed=seed)
    assert summary.counts["test_questions"] == 1000
    assert summary.accuracy["blind"] == pytest.approx(1 / 3, abs=0.02)
    assert summary.accuracy["final"] - summary.accuracy["sft"] >= 0.15
    _plain_transformers_agrees(tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_adds_ten_points_to_digits(tmp_path: Path, seed: int) -> None:
    """On 300 held-out digits, greedily."""
    summary = run_demo(tmp_path, data="digits", seed=seed)
    assert summary.counts["test_questions"] == 300
    assert summary.accuracy["final"] - summary.accuracy["sft"] >= 0.10
    _plain_transformers_agrees(tmp_path)


def _plain_transformers_agrees(run: Path) -> None:
    script = Path(__file__).parents[2] / "examples" / "plain_accuracy.py"
    done = subprocess.run([sys.executable, str(script), str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]
