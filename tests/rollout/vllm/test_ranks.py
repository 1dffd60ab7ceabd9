"""Two processes with vLLM learn what one would: over one server, or over an engine in each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import forks
from tests.trainer.conftest import Gradients, furthest
from tests.trainer.shards import FSDP2, FSDP2_LAYERS

from .conftest import START_S, Rig, Supervised
from .ranks import STEPS, build, results, server

COLOCATE = {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}


@pytest.fixture(scope="module")
def alone(rig: Rig, address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process."""
    gradients = Gradients()
    run = build(rig.folder, tmp_path_factory.mktemp("alone"), server(address), gradients)
    run.train()
    return results(run, gradients)


def on_two_ranks(
    rig: Rig, folder: Path, engine: dict[str, Any], supervisor: int = 0, further: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    words = ("tests.rollout.vllm.ranks", str(rig.folder), str(folder), json.dumps(engine), str(supervisor))
    done = forks.run(*words, ranks=2, env=further, timeout=START_S)
    assert done.returncode == 0, done.stderr[-10_000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def assert_equal(two: list[dict[str, Any]], one: dict[str, Any], within: float = 2e-5) -> None:
    for rank in two:
        assert furthest(rank["gradients"], one["gradients"]) < within
    logs = [[line for line in run["log"] if "loss" in line] for run in (one, two[0])]
    assert [line["step"] for line in logs[1]] == list(range(1, STEPS + 1))
    for left, right in zip(*logs, strict=True):
        for name in ("loss", "reward", "reward_std", "completions/mean_length", "entropy"):
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-6), name


def restarts(run: dict[str, Any]) -> float:
    return sum(line.get("work/sampler_restarts", 0) for line in run["log"] if "loss" in line)


@pytest.mark.soak  # below, with shards of the weights
def test_two_ranks_over_one_server(rig: Rig, address: str, alone: dict[str, Any], tmp_path: Path) -> None:
    two = on_two_ranks(rig, tmp_path, server(address))
    assert_equal(two, alone)
    assert restarts(two[0]) == 0


@pytest.mark.soak
def test_two_ranks_over_one_server_that_dies_under_one_of_them(
    rig: Rig, supervised: Supervised, alone: dict[str, Any], tmp_path: Path
) -> None:
    two = on_two_ranks(rig, tmp_path, server(supervised.url), supervised.process.pid)
    assert_equal(two, alone)
    assert restarts(two[0]) >= 1


@pytest.mark.parametrize(
    "environment", [pytest.param(FSDP2, marks=pytest.mark.soak), FSDP2_LAYERS], ids=["fsdp2", "fsdp2_layers"]
)
def test_two_ranks_with_shards_of_the_weights_over_one_server(
    environment: dict[str, str], rig: Rig, address: str, alone: dict[str, Any], tmp_path: Path
) -> None:
    """FSDP2: the first rank sends whole weights, gathered before or layer by layer, and as many modules are verified as with whole weights
    on every rank."""
    two = on_two_ranks(rig, tmp_path, server(address), further=environment)
    assert [rank["is_sharded"] for rank in two] == [True, True]
    assert not alone["is_sharded"]
    assert_equal(two, alone)
    for name in ("sync/tensors", "sync/modules_compared"):
        counts = [[line[name] for line in run["log"] if "loss" in line] for run in (alone, two[0])]
        assert counts[0] == counts[1]
        assert min(counts[0]) > 0


def test_an_engine_in_each_of_two_ranks(rig: Rig, alone: dict[str, Any], tmp_path: Path) -> None:
    assert_equal(on_two_ranks(rig, tmp_path, COLOCATE), alone)


@pytest.mark.soak
def test_one_engine_over_two_ranks(rig: Rig, alone: dict[str, Any], tmp_path: Path) -> None:
    """Tensor parallelism: each rank holds half of every matrix and runs the prompts of both, which differ in number.

    Halves are added in another order, so the log-probabilities that correct for the sampler differ in their last digits.
    """
    assert_equal(on_two_ranks(rig, tmp_path, COLOCATE | {"vllm_tensor_parallel_size": 2}), alone, within=1e-4)
