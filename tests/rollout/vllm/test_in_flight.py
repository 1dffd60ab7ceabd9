"""Weights that are sent to a real server while it samples: it pauses, loads them, and goes on with what was under way."""

from __future__ import annotations

import copy
import dataclasses
import time
from pathlib import Path

import torch
from torch import Tensor

from boresight.background import in_thread
from boresight.report.completions import read_completions
from boresight.rollout.vllm.server import ServerEngine
from boresight.types import Group, SamplingSettings

from .conftest import Rig, Supervised
from .test_contract import furthest, trainer_logp
from .test_faults import trainer
from .test_sync import move

LONG = SamplingSettings(4, 200, seed=5)
SHORT = SamplingSettings(4, 10, seed=6)


def gaps(rig: Rig, groups: list[Group], model: object) -> list[Tensor]:
    """Each completion's distances of the sampler's log-probabilities from a model's, in nats."""
    completions = [completion for group in groups for completion in group.completions]
    rows = trainer_logp(rig, groups, 1.0, model)
    return [(each.sampler_logp - row).abs() for each, row in zip(completions, rows, strict=True)]  # pyright: ignore[reportOptionalOperand]


def renewed(rig: Rig, engine: ServerEngine) -> tuple[object, list[Group], object]:
    """Completions that were under way when new weights came, the policy before, and the sampler."""
    endless = dataclasses.replace(rig.facts, stop_ids=())
    sampler = rig.sampler(engine, facts=endless)
    sampler.renews = True
    sampler.sample(rig.prompts, SHORT)  # whose images and prompts are then cached
    before = copy.deepcopy(rig.model)
    running = in_thread(lambda: sampler.sample(rig.prompts, LONG))
    time.sleep(0.3)
    move(rig)
    sampler.outdate()
    assert sampler.sync(1, in_flight=True) is not None
    assert not running.done()  # 200 tokens take longer
    return before, running.result(), sampler


def test_completions_go_on_with_the_new_weights(kept: Rig, remote: ServerEngine) -> None:
    before, groups, _ = renewed(kept, remote)
    assert {len(completion.ids) for group in groups for completion in group.completions} == {200}
    for gap in gaps(kept, groups, before):
        num_old = int((gap > 1e-2).nonzero()[0])
        assert num_old > 0 and float(gap[:num_old].max()) < 1e-3  # sampled, and reported, with the old weights
        assert float((gap[num_old:] > 1e-2).float().mean()) > 0.5
    assert (
        min(float(gap.max()) for gap in gaps(kept, groups, kept.model)) > 1e-2
    )  # and the first tokens not with the new ones


def test_the_next_batch_is_of_the_new_weights_alone(kept: Rig, remote: ServerEngine) -> None:
    """Caches of the old ones are in use until the batch ends, and reset before the next."""
    _, _, sampler = renewed(kept, remote)
    assert sampler.sync(1) is None
    assert furthest(kept, sampler.sample(kept.prompts, SHORT)) < 1e-3


def test_without_that_reset_the_next_batch_is_wrong(kept: Rig, remote: ServerEngine) -> None:
    _, _, sampler = renewed(kept, remote)
    assert furthest(kept, sampler.sample(kept.prompts, SHORT)) > 1e-2


def test_a_run_learns_from_such_rollouts(kept: Rig, supervised: Supervised, tmp_path: Path) -> None:
    options = {"rollout_lag": 1, "vllm_in_flight_sync": True, "max_completion_length": 150, "max_steps": 4}
    run = trainer(kept, tmp_path, supervised, **options)
    run.train()
    steps = [line for line in run.state.log_history if "loss" in line]
    assert len(steps) == 4
    assert sum(line.get("sync/in_flight", 0) for line in steps) >= 1
    assert all(torch.isfinite(torch.tensor(line["grad_norm"])) for line in steps)
    assert read_completions(tmp_path)["age"].to_pylist().count(0) == len(read_completions(tmp_path)) // 4
