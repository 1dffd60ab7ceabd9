"""Engines in one process: what one leaves behind does not harm another, nor training."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable

import pytest
import torch

from boresight.rollout.vllm.local import FOR_CHILDREN, LocalEngine
from boresight.sampling import SamplingSettings

from .conftest import ENGINE, IMAGES, Rig
from .test_contract import ids_of

SETTINGS = SamplingSettings(2, 6, seed=3)


def forget(engine: LocalEngine) -> None:
    """Nothing: whoever calls it has no other name for the engine."""


@pytest.mark.parametrize("leave", [LocalEngine.close, forget])
def test_an_engine_that_goes_leaves_the_others_as_they_are(
    rig: Rig, local: LocalEngine, leave: Callable[[LocalEngine], None]
) -> None:
    first, environment = rig.sampler(local), dict(os.environ)
    said = ids_of(first.sample(rig.prompts, SETTINGS))
    engines = [LocalEngine(rig.save, limit_mm_per_prompt=IMAGES, **ENGINE)]
    gone = weakref.ref(engines[0]._llm)
    assert ids_of(rig.sampler(engines[0]).sample(rig.prompts, SETTINGS)) == said
    leave(engines.pop())
    gc.unfreeze()
    gc.collect()
    assert gone() is None
    assert [name for name in FOR_CHILDREN if os.environ.get(name) != environment.get(name)] == []
    assert torch.distributed.is_initialized()
    assert ids_of(first.sample(rig.prompts, SETTINGS)) == said


def test_processes_that_are_started_later_know_nothing_of_an_engine(local: LocalEngine) -> None:
    """vLLM preloads an OpenMP for its workers, with which other processes may be aborted when they end."""
    assert local.version() is not None
    assert "libgomp" not in os.environ.get("LD_PRELOAD", "")
