"""Two processes with vLLM learn what one would: over one server, or over an engine in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import Gradients, furthest

from .conftest import START_S, Rig, Supervised
from .ranks import STEPS, build, results

ROOT = Path(__file__).parents[3]
PER_RANK = ("work/sampler_restarts", "work/prompt_tokens")


@pytest.fixture(scope="module")
def alone(rig: Rig, address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process."""
    gradients = Gradients()
    run = build(rig.folder, tmp_path_factory.mktemp("alone"), address, gradients)
    run.train()
    return results(run, gradients)


def on_two_ranks(rig: Rig, folder: Path, url: str = "", supervisor: int = 0) -> list[dict[str, Any]]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command = [sys.executable, "-m", *launcher, "tests.rollout.vllm.ranks", str(rig.folder), str(folder), url]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(supervisor)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_equal(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for rank in two:
        assert furthest(rank["gradients"], one["gradients"]) < 2e-5
    logs = [[line for line in run["log"] if "loss" in line] for run in (one, two[0])]
    assert [line["step"] for line in logs[1]] == list(range(1, STEPS + 1))
    for left, right in zip(*logs, strict=True):
        for name in ("loss", "reward", "reward_std", "completions/mean_length", "entropy"):
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-6), name


def restarts(run: dict[str, Any]) -> float:
    return sum(line.get("work/sampler_restarts", 0) for line in run["log"] if "loss" in line)


def test_two_ranks_over_one_server(rig: Rig, address: str, alone: dict[str, Any], tmp_path: Path) -> None:
    two = on_two_ranks(rig, tmp_path, address)
    assert_equal(two, alone)
    assert restarts(two[0]) == 0


def test_two_ranks_over_one_server_that_dies_under_one_of_them(
    rig: Rig, supervised: Supervised, alone: dict[str, Any], tmp_path: Path
) -> None:
    two = on_two_ranks(rig, tmp_path, supervised.url, supervised.process.pid)
    assert_equal(two, alone)
    assert restarts(two[0]) >= 1


def test_an_engine_in_each_of_two_ranks(rig: Rig, alone: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(on_two_ranks(rig, tmp_path), alone)
