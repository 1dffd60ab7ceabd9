"""What the client requires of a server before it is used: that it is up, that it is the right program, and has every ability.

What a server may do later is in `test_client_faults`; what needs a real vLLM is in `test_faults`.
"""

from __future__ import annotations

import logging
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from boresight.errors import ConfigError, EngineError
from boresight.rollout.vllm import client as module
from boresight.rollout.vllm.engine import EngineProtocolError
from boresight.rollout.vllm.protocol.messages import REPLICAS_PATH
from boresight.rollout.vllm.server import ServerEngine

from .conftest import free_port
from .stand import CHOICE, REQUESTS, Reply, Stand, attached, drop, hang, says


def test_an_answer_is_read(stand: Stand) -> None:
    """The control of what follows: choices come in any order."""
    second = CHOICE | {"index": 1, "finish_reason": "length", "token_ids": [6, 7]}
    second["logprobs"] = {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}
    stand.answers["/inference/v1/generate"] = says({"prompt_token_ids": [1, 2, 3], "choices": [second, CHOICE]})
    (output, *_) = attached(stand).generate(REQUESTS)
    assert output.prompt_ids == [1, 2, 3]
    assert output.completions == [([5], [-1.5]), ([6, 7], [-0.5, -0.25])]


# ---- A server that lacks something ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "needs"),
    [
        ("/collective_rpc", "VLLM_SERVER_DEV_MODE=1"),
        ("/start_weight_update", "vllm==0.32.0"),
        ("/inference/v1/generate", "--enable-scale-out"),
    ],
)
def test_a_server_without_an_ability_is_refused_with_what_gives_it(stand: Stand, path: str, needs: str) -> None:
    stand.paths.remove(path)
    with pytest.raises(ConfigError, match=rf"has no {path}: it needs .*{needs}.* boresight vllm-serve"):
        attached(stand)


@pytest.mark.parametrize("answer", [says("no attribute boresight_facts", 500), says("Not Found", 404)])
def test_a_server_that_does_not_know_boresight_is_refused(stand: Stand, answer: Reply) -> None:
    del stand.rpc["boresight_facts"]
    stand.answers[REPLICAS_PATH] = answer
    with pytest.raises(ConfigError, match="has no boresight plugin: start it with boresight vllm-serve"):
        attached(stand)


def test_a_server_that_takes_weights_in_another_way_is_refused(stand: Stand) -> None:
    stand.rpc["boresight_facts"]["transport"] = None
    with pytest.raises(ConfigError, match="keeps no record: start it with boresight vllm-serve"):
        attached(stand)


@pytest.mark.parametrize(
    ("fact", "complaint"),
    [
        ("num_stages", "--pipeline-parallel-size 2, with which a sync cannot be verified: divide a model by"),
        ("num_coupled", "--data-parallel-size 2 and a mixture of experts, .* start several servers and list them"),
    ],
)
def test_a_server_over_which_no_sync_can_be_verified_is_refused(stand: Stand, fact: str, complaint: str) -> None:
    stand.rpc["boresight_facts"][fact] = 2
    with pytest.raises(ConfigError, match=f"has {complaint}"):
        attached(stand)


def test_replicas_that_weights_by_nccl_would_not_reach_are_refused(stand: Stand) -> None:
    facts = stand.rpc["boresight_facts"] | {"transport": "nccl"}
    stand.answers[REPLICAS_PATH] = says({"results": [facts, facts]})
    del stand.rpc["boresight_facts"]
    with pytest.raises(
        ConfigError, match="has --data-parallel-size 2, and weights by NCCL reach one replica: drop --nccl"
    ):
        attached(stand)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"max_num_seqs": "8"}, "EngineFacts.max_num_seqs is '8' instead of int"),
        ({"parts": 1}, "EngineFacts has the unknown field parts"),
    ],
)
def test_a_server_with_another_boresight_is_refused_with_the_field(
    stand: Stand, change: dict[str, Any], complaint: str
) -> None:
    stand.rpc["boresight_facts"] |= change
    with pytest.raises(EngineProtocolError, match=rf"answered boresight_facts .*{complaint}.*: install the same"):
        attached(stand)


def test_another_program_at_the_address(stand: Stand) -> None:
    stand.answers["/openapi.json"] = says("<html>welcome</html>")
    with pytest.raises(EngineError, match=r"200 to /openapi.json: <html>.* not JSON. Does another program use"):
        attached(stand)


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="write http://localhost:8000"):
        ServerEngine("localhost:8000")


# ---- A server that is not there ------------------------------------------------------------------------------------------------------


def test_a_server_that_never_comes_up_is_given_up(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "LOG_EVERY_S", 0.2)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(EngineError, match=r"was not up within vllm_server_timeout=1 s"),
    ):
        ServerEngine(f"http://127.0.0.1:{free_port()}", timeout_s=1.0)
    assert any(record.message.startswith("waiting for the vLLM server") for record in caplog.records)


def test_a_dead_server_of_ones_own_is_not_waited_for() -> None:
    with pytest.raises(EngineError, match="has ended"):
        ServerEngine(f"http://127.0.0.1:{free_port()}", timeout_s=100.0, alive=lambda: False)


def test_one_that_answers_but_is_not_well_is_waited_for(stand: Stand) -> None:
    stand.answers["/health"] = lambda handler: says(status=503 if stand.asked.count("/health") < 3 else 200)(handler)
    attached(stand, timeout_s=10.0)
    assert stand.asked[:3] == ["/health"] * 3


def test_one_that_hangs_when_asked_for_its_health_is_not_up(stand: Stand, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "HEALTH_S", 0.2)
    stand.answers["/health"] = hang
    with pytest.raises(EngineError, match=r"was not up within vllm_server_timeout=0\.5 s"):
        attached(stand, timeout_s=0.5)


def test_attaching_survives_a_restart(stand: Stand) -> None:
    def once(handler: BaseHTTPRequestHandler) -> None:
        stand.answers["/is_paused"] = says({"is_paused": False})
        drop(handler)

    stand.answers["/is_paused"] = once
    assert attached(stand).transport == "file"


def test_what_a_trainer_before_left_is_undone(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    stand.rpc["boresight_abandon_update"]["was_active"] = True
    stand.answers["/is_paused"] = says({"is_paused": True})
    stand.answers["/is_sleeping"] = says({"is_sleeping": True})
    with caplog.at_level(logging.WARNING):
        attached(stand)
    assert {"/resume", "/wake_up"} <= set(stand.asked)
    said = " ".join(record.message for record in caplog.records)
    assert "middle of a sync" in said
    assert "was paused" in said
    assert "was asleep" in said


def test_a_call_is_not_sent_through_a_proxy(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    attached(stand)
