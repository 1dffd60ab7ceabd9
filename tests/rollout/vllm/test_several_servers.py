"""Two real servers share the prompts of a run. One of them dies in the middle, and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from boresight import GRPOTrainer
from boresight.report.completions import read_completions
from boresight.rollout.several import SeveralEngines
from boresight.sampling import SamplingSettings

from .conftest import START_S, Rig, Supervised
from .test_contract import ids_of
from .test_faults import STEPS, Between, assert_nothing_is_lost, trainer, weights_of

SETTINGS = {"greedy": SamplingSettings(4, 10, temperature=0.0), "seeded": SamplingSettings(4, 10, seed=5)}


@pytest.fixture(scope="module")
def other(rig: Rig, supervised: Supervised, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    log = tmp_path_factory.mktemp("server") / "said.txt"
    server = Supervised(rig.folder, log)
    yield server
    assert server.close() == 0, log.read_text()[-2000:]


@pytest.fixture(scope="module")
def one(rig: Rig, supervised: Supervised, tmp_path_factory: pytest.TempPathFactory) -> tuple[GRPOTrainer, Path]:
    """A run with one server."""
    folder = tmp_path_factory.mktemp("one")
    run = trainer(rig, folder, supervised)
    run.train()
    return run, folder


def over_two(rig: Rig, folder: Path, servers: tuple[Supervised, Supervised], **options: Any) -> GRPOTrainer:
    urls = [server.url for server in servers]
    return trainer(rig, folder, servers[0], **{"vllm_server_base_url": urls, "vllm_server_timeout": START_S, **options})


def engine_of(run: GRPOTrainer) -> SeveralEngines:
    return run.sampler.engine  # pyright: ignore[reportAttributeAccessIssue]


def logged(run: GRPOTrainer, name: str) -> list[float]:
    return [line.get(f"work/sampler_{name}", 0) for line in run.state.log_history if "loss" in line]


def assert_learned_the_same(run: GRPOTrainer, folder: Path, one: tuple[GRPOTrainer, Path]) -> None:
    """The same completions, and the same weights up to what a batch's size does to the last digits of vLLM's log-probabilities."""
    assert_nothing_is_lost(run, folder)
    assert (
        read_completions(folder)["completion_ids"].to_pylist() == read_completions(one[1])["completion_ids"].to_pylist()
    )
    expected = weights_of(one[0])
    for name, value in weights_of(run).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize("kind", SETTINGS)
def test_two_servers_sample_what_one_does(
    rig: Rig, supervised: Supervised, other: Supervised, tmp_path: Path, kind: str
) -> None:
    engine = engine_of(over_two(rig, tmp_path, (supervised, other)))
    found = []
    for working in ({0, 1}, {0}, {1}):
        engine.sync(0)
        engine._out = {0, 1} - working
        groups = engine.completed(rig.prompts, engine.requests(rig.prompts, SETTINGS[kind]), SETTINGS[kind])
        found.append(ids_of(groups))
    assert found[0] == found[1] == found[2]


@pytest.mark.timeout(2 * START_S)
def test_a_run_over_two_servers(
    rig: Rig, supervised: Supervised, other: Supervised, one: tuple[GRPOTrainer, Path], tmp_path: Path
) -> None:
    """Both hold the weights of every step, verified on each, and both sample."""
    run = over_two(rig, tmp_path, (supervised, other))
    run.train()
    assert_learned_the_same(run, tmp_path, one)
    first, second = engine_of(run).engines
    assert first.version
    assert second.version
    compared = [line["sync/modules_compared"] for line in run.state.log_history if "loss" in line]
    alone = [line["sync/modules_compared"] for line in one[0].state.log_history if "loss" in line]
    assert compared == [2 * number for number in alone]


@pytest.mark.timeout(2 * START_S)
def test_one_of_two_servers_dies_in_the_middle_and_comes_back(
    rig: Rig, supervised: Supervised, other: Supervised, one: tuple[GRPOTrainer, Path], tmp_path: Path
) -> None:
    """It dies under requests, nobody starts it for two steps, and then it has random weights until it is synced."""
    run = over_two(rig, tmp_path, (supervised, other))
    second: Any = engine_of(run).engines[1]
    send, struck = second.engine.client.send_all, []

    def sending(calls: Any) -> Any:
        if calls[0][1] == "/inference/v1/generate" and run.state.global_step == 1 and not struck:
            os.kill(other.process.pid, signal.SIGSTOP)  # so that it cannot start it again
            other.kill()
            struck.append(run.state.global_step)
        return send(calls)

    def started_again() -> None:
        os.kill(other.process.pid, signal.SIGCONT)
        second.engine.client.wait()

    second.engine.client.send_all = sending
    run.add_callback(Between(3, started_again))
    try:
        run.train()
    finally:
        os.kill(other.process.pid, signal.SIGCONT)
    assert struck == [1]
    assert run.state.global_step == STEPS == 4
    assert_learned_the_same(run, tmp_path, one)
    assert logged(run, "prompts_sampled_again") == [0, 1, 0, 0]
    assert logged(run, "engines_taken_back") == [0, 0, 0, 1]
    assert logged(run, "restarts") == [0, 0, 0, 1]
    assert all(engine_of(run).version.split("\n"))


@pytest.mark.timeout(2 * START_S)
def test_rollouts_one_ahead_over_two_servers(
    rig: Rig, supervised: Supervised, other: Supervised, tmp_path: Path
) -> None:
    """The same completions as over one, each of the weights of one step before."""
    runs = {}
    for name, servers in (("one", (supervised,)), ("two", (supervised, other))):
        urls = [server.url for server in servers]
        runs[name] = trainer(rig, tmp_path / name, supervised, vllm_server_base_url=urls, rollout_lag=1)
        runs[name].train()
    one, two = (read_completions(tmp_path / name) for name in runs)
    assert one["completion_ids"].to_pylist() == two["completion_ids"].to_pylist()
    assert two["age"].to_pylist() == [age for age in (0, 1, 1, 1) for _ in range(8)]
    assert_nothing_is_lost(runs["two"], tmp_path / "two")
    ratios = [
        line["sampling/importance_sampling_ratio/max"] for line in runs["two"].state.log_history if "loss" in line
    ]
    assert ratios[0] < 1.001 < min(ratios[1:])
