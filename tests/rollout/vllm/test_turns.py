"""GRPO with tools on real vLLM: calls, images of tools, and turns that the engine samples after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.sampler import VLLMSampler
from tests.trainer.conftest import tool_trainer
from tests.trainer.scripted import call

from .conftest import START_S, Rig
from .ranks import server

COLOCATE = {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}


def show(size: int) -> list[dict[str, Any]]:
    """Show an image.

    Args:
        size: Its height.
    """
    return [{"type": "text", "text": "look:"}, {"type": "image", "image": Image.new("RGB", (32, size), "blue")}]


def lengths(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion)) + 0.1 * len(completion[-1]["content"]) for completion in completions]


def uneven(place: int, k: int, turn: int) -> str | None:
    """Two completions of each group call at once, one of them again; every last turn is the engine's."""
    if turn == 0:
        return call("show", size=32 + 32 * k) if k < 2 else None
    return call("show", size=48) if turn == 1 and place % 2 else None


@pytest.mark.timeout(2 * START_S)
@pytest.mark.parametrize("mode", [pytest.param("colocate", marks=pytest.mark.soak), "server"])
def test_every_turn_is_sampled_by_the_engine(
    rig: Rig, mode: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Over two steps: each turn's log-probabilities are the trainer's, under weights that were sent in between."""
    engine = COLOCATE if mode == "colocate" else server(request.getfixturevalue("address"))
    trainer = tool_trainer(
        rig.folder, str(tmp_path), uneven, lengths, rows(), tools=[show], describes=False, use_vllm=True, use_cpu=True, max_steps=2,
        max_completion_length=300, learning_rate=1e-2, tool_workers=1, **engine,
    )  # fmt: skip
    sampler = trainer.sampler.engine  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(sampler, VLLMSampler)
    sent: list[list[Request]] = []
    generate = sampler.engine.generate
    sampler.engine.generate = lambda requests: sent.append(list(requests)) or generate(requests)
    trainer.train()
    for line in trainer.state.log_history[:2]:
        assert line["tools/call_frequency"] == pytest.approx((1 + 2 + 0 + 0) / 4)
        assert line["tools/failure_frequency"] == 0
        assert line["tools/num_images"] == pytest.approx(3 / 4)
        assert line["sampling/sampling_logp_difference/max"] < 1e-3
    # A turn is one request for each completion that goes on: the prompt and its turns so far, images of both.
    rollouts = [requests for requests in sent if requests[0].sampling["n"] == 4]
    turns = [requests for requests in sent if requests[0].sampling["n"] == 1]
    assert [len(requests) for requests in rollouts] == [2, 2]
    assert [len(requests) for requests in turns] == [4, 2] * 2
    for first, second in (turns[:2], turns[2:]):
        assert sorted(len(request.images) for request in first) == [1, 1, 2, 2]
        assert sorted(len(request.images) for request in second) == [2, 3]
        # Nothing is rendered again: what the engine was sent before is how it begins.
        earlier = [list(request.ids) for request in first]
        assert all(any(list(request.ids)[: len(ids)] == ids for ids in earlier) for request in second)


def rows() -> list[dict[str, Any]]:
    """One with an image, one without."""
    question = {"prompt": [{"role": "user", "content": "what?"}]}
    return [question | {"image": Image.new("RGB", (56, 56), "red")}, question | {"image": None}]
