"""Structured outputs, and an engine that is put to sleep between draws."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from boresight.data.images import decode
from boresight.errors import ConfigError, EngineError
from boresight.model.export import PolicyWeights
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import check_sleep
from boresight.rollout.vllm.sampler import State, VLLMSampler
from boresight.sampling import SamplingSettings

from .conftest import Rig
from .test_contract import furthest

SETTINGS = SamplingSettings(4, 10, seed=5)
REGEX = r"<answer>(blue|red)</answer>"


def sampler_of(rig: Rig, engine: Engine, **options: Any) -> VLLMSampler:
    options = {"decode_image": decode, "name": "test", **options}
    made = VLLMSampler(engine, PolicyWeights(rig.model), rig.facts, rig.processor.tokenizer, **options)
    made.sync(0)
    return made


def test_every_completion_matches_the_expression(engine: Engine, rig: Rig) -> None:
    sampler = sampler_of(rig, engine, structured={"regex": REGEX})
    groups = sampler.sample(rig.prompts, SamplingSettings(8, 40, seed=5))
    completions = [completion for group in groups for completion in group.completions]
    assert {completion.text for completion in completions} == {"<answer>blue</answer>", "<answer>red</answer>"}
    assert all(re.fullmatch(REGEX, completion.text) and not completion.truncated for completion in completions)
    # Log-probabilities are those of what was allowed, which the policy alone would hardly say.
    assert furthest(rig, groups) > 1.0
    assert max(float(completion.sampler_logp.max()) for completion in completions) == pytest.approx(0.0, abs=1e-6)  # pyright: ignore[reportOptionalMemberAccess]
    # And the engine is not left so.
    assert furthest(rig, sampler_of(rig, engine).sample(rig.prompts, SETTINGS)) < 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM can sleep here")
def test_sleep_is_refused_where_vllm_cannot() -> None:
    with pytest.raises(ConfigError, match=r"vllm_enable_sleep_mode=True .* cannot on this machine \(cpu\): drop it"):
        check_sleep()


def test_a_sleeping_engine_is_refused_and_wakes_with_the_policys_weights(local: Engine, kept: Rig) -> None:
    """vLLM's own calls; on a CPU they pause the engine and free nothing."""
    sampler = sampler_of(kept, local, sleeps=True)
    assert sampler.state is State.FRESH
    sampler.sample(kept.prompts, SETTINGS)
    sampler.rest()
    assert sampler.state is State.ASLEEP
    with pytest.raises(EngineError, match="is asleep: it must be synced"):
        sampler.sample(kept.prompts, SETTINGS)
    sampler.outdate()
    assert sampler.state is State.ASLEEP
    with torch.no_grad():
        for parameter in kept.model.parameters():
            parameter.mul_(1.1)
    assert sampler.sync(1) is not None  # it woke with the weights it fell asleep with
    assert sampler.state is State.FRESH
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def test_an_engine_that_need_not_sleep_stays_awake(local: Engine, rig: Rig) -> None:
    sampler = sampler_of(rig, local)
    sampler.rest()
    assert sampler.state is State.FRESH
