"""Weights that are sent to a real server while it samples: it pauses, loads them, and goes on with what was under way."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from boresight.background import in_thread
from boresight.report.completions import read_completions
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.server import ServerEngine
from boresight.sampling import SamplingSettings
from boresight.types import Group

from .conftest import Rig, Supervised
from .test_contract import furthest, trainer_logp
from .test_faults import trainer, with_key
from .test_sync import move

LENGTH = 250
NUM_BEFORE = 60
"""Tokens of all completions together that the server has sampled when the sync begins."""
LONG = SamplingSettings(4, LENGTH, seed=5)
SHORT = SamplingSettings(4, 10, seed=6)


def gaps(rig: Rig, groups: list[Group], model: object) -> list[Tensor]:
    """Each completion's distances of the sampler's log-probabilities from a model's, in nats."""
    completions = [completion for group in groups for completion in group.completions]
    rows = trainer_logp(rig, groups, 1.0, model)
    return [(each.sampler_logp - row).abs() for each, row in zip(completions, rows, strict=True)]  # pyright: ignore[reportOptionalOperand]


def renewed(rig: Rig, engine: ServerEngine) -> tuple[object, list[Group], VLLMSampler]:
    """Completions that were under way when new weights came, the policy before, and the sampler."""
    endless = dataclasses.replace(rig.facts, stop_ids=())
    sampler = rig.sampler(engine, facts=endless)
    sampler.renews = True
    sampler.sample(rig.prompts, SHORT)  # whose images and prompts are then cached
    before = copy.deepcopy(rig.model)
    move(rig)  # which the engine does not hear of yet
    already = num_sampled(engine)
    running = in_thread(lambda: sampler.sample(rig.prompts, LONG))
    while num_sampled(engine) < already + NUM_BEFORE:
        assert not running.done()
        time.sleep(0.01)
    sampler.outdate()
    assert sampler.sync(1, in_flight=True) is not None
    return before, running.result(), sampler


def num_sampled(engine: ServerEngine) -> int:
    """How many tokens the server has sampled since it started."""
    url = engine.client.url
    response = httpx.get(f"{url}/metrics", headers=with_key(url), trust_env=False, timeout=60)
    counts = re.findall(r"^vllm:generation_tokens_total\{.*\} (\S+)$", response.text, re.MULTILINE)
    return int(sum(map(float, counts)))


def test_completions_go_on_with_the_new_weights(kept: Rig, remote: ServerEngine) -> None:
    before, groups, _ = renewed(kept, remote)
    assert {len(completion.ids) for group in groups for completion in group.completions} == {LENGTH}
    num_old = 0
    for gap in gaps(kept, groups, before):
        first_new = int((gap > 1e-4).nonzero()[0])  # until then all are the old policy's
        assert float((gap[first_new:] > 1e-2).float().mean()) > 0.5
        num_old += first_new
    assert num_old >= NUM_BEFORE
    assert (
        min(float(gap.max()) for gap in gaps(kept, groups, kept.model)) > 1e-2
    )  # and the first tokens not with the new ones


def test_the_next_batch_is_of_the_new_weights_alone(kept: Rig, remote: ServerEngine) -> None:
    """Caches of the old ones are in use until the batch ends, and reset before the next."""
    _, _, sampler = renewed(kept, remote)
    assert sampler.is_fresh  # so that no rank gathers weights
    assert sampler.sync(1) is None
    assert furthest(kept, sampler.sample(kept.prompts, SHORT)) < 1e-3


def test_without_that_reset_the_next_batch_is_wrong(kept: Rig, remote: ServerEngine) -> None:
    _, _, sampler = renewed(kept, remote)
    assert furthest(kept, sampler.sample(kept.prompts, SHORT)) > 1e-2


def test_a_run_learns_from_such_rollouts(kept: Rig, supervised: Supervised, tmp_path: Path) -> None:
    options = {"rollout_lag": 1, "vllm_in_flight_sync": True, "max_completion_length": 150, "max_steps": 4}
    run = trainer(kept, tmp_path, supervised, **options)
    engine: Any = run.sampler.engine.engine  # pyright: ignore[reportAttributeAccessIssue]
    generate, load = engine.generate, engine.load
    numbers, renewed = itertools.count(), threading.Semaphore(0)

    def loading(*arguments: Any, in_flight: bool = False) -> None:
        load(*arguments, in_flight=in_flight)
        if in_flight:
            renewed.release()

    def generating(requests: Any) -> Any:
        """Each batch but the first ends only once the weights of the step before it have come."""
        outputs = generate(requests)
        assert next(numbers) == 0 or renewed.acquire(timeout=120)
        return outputs

    engine.generate, engine.load = generating, loading
    run.train()
    steps = [line for line in run.state.log_history if "loss" in line]
    assert len(steps) == 4
    assert [line.get("sync/in_flight", 0) for line in steps] == [0, 1, 1, 1]
    assert all(torch.isfinite(torch.tensor(line["grad_norm"])) for line in steps)
    assert read_completions(tmp_path)["age"].to_pylist().count(0) == len(read_completions(tmp_path)) // 4
