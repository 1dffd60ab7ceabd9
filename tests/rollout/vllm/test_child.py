"""An engine that training starts for itself, in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boresight.errors import EngineError, EngineRestartedError
from boresight.rollout.vllm.child import ChildEngine
from boresight.sampling import SamplingSettings

from .conftest import ENGINE, IMAGES, START_S, Rig
from .test_contract import furthest

SETTINGS = SamplingSettings(2, 6, seed=3)
OPTIONS = {**ENGINE, "limit_mm_per_prompt": IMAGES, "distributed_executor_backend": "uni"}

Start = Callable[..., ChildEngine]


@pytest.fixture
def start(rig: Rig, tmp_path: Path) -> Start:
    def build(**options: Any) -> ChildEngine:
        return ChildEngine(rig.save, OPTIONS | options, log=tmp_path / "run" / "vllm.log", timeout_s=START_S)

    return build


@pytest.mark.timeout(2 * START_S)
@pytest.mark.soak
def test_one_that_dies_is_started_again(rig: Rig, start: Start) -> None:
    engine = start()
    sampler = rig.sampler(engine)
    assert furthest(rig, sampler.sample(rig.prompts, SETTINGS)) < 1e-3
    os.killpg(engine._server.process.pid, signal.SIGKILL)
    with pytest.raises(EngineRestartedError, match=r"became unavailable .* and is up again"):
        sampler.sample(rig.prompts, SETTINGS)
    sampler.outdate()
    sampler.sync(1)
    assert furthest(rig, sampler.sample(rig.prompts, SETTINGS)) < 1e-3
    assert sampler.counts["restarts"] == 1
    engine.close()
    assert not engine._server.is_alive()


def test_one_that_does_not_come_up_is_quoted(start: Start) -> None:
    with pytest.raises(
        EngineError, match=r"has ended\. Its output is in .*vllm\.log and ends with: (?s:.*)max_model_len"
    ):
        start(max_model_len=10**7)
