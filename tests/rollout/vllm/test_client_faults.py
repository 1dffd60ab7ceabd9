"""What a server may do to a call of a client that is attached to it: go away, break an answer off, hang, or lose a sync."""

from __future__ import annotations

import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import torch

from boresight.errors import EngineError, EngineGoneError, EngineRestartedError

from .stand import CHOICE, COMPLETED, REQUESTS, Reply, Stand, attached, drip, drop, half, hang, says

# ---- A server that goes away ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [half, drop, says("starting", 503), says("no upstream", 502)], ids=range(4))
def test_a_broken_answer_means_that_the_server_must_be_asked_anew(stand: Stand, fault: Reply) -> None:
    engine = attached(stand)
    stand.answers["/inference/v1/generate"] = fault
    with pytest.raises(EngineRestartedError, match=r"became unavailable .* and is up again"):
        engine.generate(REQUESTS)
    stand.answers["/inference/v1/generate"] = says(COMPLETED)
    assert len(engine.generate(REQUESTS)) == 3


def test_an_engine_that_dies_behind_its_server_is_waited_for(stand: Stand) -> None:
    """vLLM answers 500 to what was under way, and 503 when asked for its health."""
    engine = attached(stand, timeout_s=10.0)
    before = stand.asked.count("/health")
    stand.answers["/inference/v1/generate"] = says("EngineDeadError", 500)
    stand.answers["/health"] = lambda handler: says(status=503 if stand.asked.count("/health") < before + 3 else 200)(
        handler
    )
    with pytest.raises(EngineRestartedError, match="EngineDeadError"):
        engine.generate(REQUESTS)


def test_an_engine_that_is_well_and_answers_500_is_believed(stand: Stand) -> None:
    engine = attached(stand)
    stand.answers["/inference/v1/generate"] = says("no such sampling parameter", 500)
    with pytest.raises(EngineError, match="answered 500 to /inference/v1/generate: no such sampling") as caught:
        engine.generate(REQUESTS)
    assert not isinstance(caught.value, EngineRestartedError)


def test_a_server_that_goes_away_for_good(stand: Stand) -> None:
    engine = attached(stand)
    stand.shutdown()
    stand.server_close()
    with pytest.raises(
        EngineError, match="became unavailable and did not recover within vllm_server_timeout=1 s"
    ) as caught:
        engine.generate(REQUESTS)
    assert not isinstance(caught.value, EngineRestartedError)


@pytest.mark.parametrize("fault", [half, drop, says("starting", 503), hang], ids=range(4))
def test_where_others_go_on_nothing_waits_for_a_server(stand: Stand, fault: Reply) -> None:
    """One that does not answer in time is gone as well."""
    engine = attached(stand, request_timeout_s=1.0, timeout_s=60.0)
    engine.client.waits = False
    stand.answers["/inference/v1/generate"] = fault
    start = time.monotonic()
    with pytest.raises(EngineGoneError, match=r"became unavailable|did not answer /inference/v1/generate within"):
        engine.generate(REQUESTS)
    assert time.monotonic() - start < 10
    assert engine.is_up()
    stand.answers["/health"] = says(status=503)
    assert not engine.is_up()


@pytest.mark.parametrize("reason", ["abort", None])
def test_completions_that_were_broken_off_are_no_completions(stand: Stand, reason: str | None) -> None:
    """Another client may abort all requests: what vLLM had by then looks like an answer."""
    engine = attached(stand)
    stand.answers["/inference/v1/generate"] = says(COMPLETED | {"choices": [CHOICE | {"finish_reason": reason}]})
    with pytest.raises(EngineRestartedError, match="aborted completions"):
        engine.generate(REQUESTS)


def test_an_answer_without_log_probabilities(stand: Stand) -> None:
    engine = attached(stand)
    stand.answers["/inference/v1/generate"] = says(COMPLETED | {"choices": [CHOICE | {"logprobs": None}]})
    with pytest.raises(EngineError, match=r"answered /inference/v1/generate with .*'logprobs': None"):
        engine.generate(REQUESTS)


# ---- Deadlines, and letting go -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [hang, drip])
def test_no_call_outlives_its_deadline(stand: Stand, fault: Reply) -> None:
    engine = attached(stand, request_timeout_s=0.5)
    stand.answers["/inference/v1/generate"] = fault
    with pytest.raises(
        EngineError, match=r"did not answer /inference/v1/generate within vllm_request_timeout=0.5 s"
    ) as caught:
        engine.generate(REQUESTS)
    assert not isinstance(caught.value, EngineRestartedError)  # waiting again would help nobody


def test_when_one_request_fails_the_others_are_let_go(stand: Stand) -> None:
    """The server can tell: their connections are closed."""
    engine = attached(stand, request_timeout_s=60.0)

    def one_fails(handler: BaseHTTPRequestHandler) -> None:
        if stand.asked.count("/inference/v1/generate") < 3:
            hang(handler)
        else:
            for _ in range(2):
                assert stand.hanging.acquire(timeout=30)
            drop(handler)

    stand.answers["/inference/v1/generate"] = one_fails
    with pytest.raises(EngineRestartedError):
        engine.generate(REQUESTS)
    for _ in range(2):
        assert stand.let_go.acquire(timeout=30)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_lets_go_at_once(stand: Stand) -> None:
    engine = attached(stand, request_timeout_s=200.0)
    stand.answers["/inference/v1/generate"] = hang

    def interrupt() -> None:
        for _ in REQUESTS:
            assert stand.hanging.acquire(timeout=30)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(REQUESTS)
    for _ in REQUESTS:
        assert stand.let_go.acquire(timeout=30)
    stand.answers["/inference/v1/generate"] = says(COMPLETED)
    assert len(engine.generate(REQUESTS)) == 3


def test_many_requests_share_one_deadline(stand: Stand) -> None:
    """However the server staggers them."""
    engine = attached(stand, request_timeout_s=1.0)

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.4 * stand.asked.count("/inference/v1/generate"))
        says(COMPLETED)(handler)

    stand.answers["/inference/v1/generate"] = slowly
    with pytest.raises(EngineError, match="vllm_request_timeout"):
        engine.generate(REQUESTS * 3)


# ---- A sync that breaks --------------------------------------------------------------------------------------------------------------


def tensors() -> list[tuple[str, torch.Tensor]]:
    return [("a", torch.zeros(2)), ("b", torch.ones(2))]


def test_a_server_that_was_started_anew_during_a_sync_is_told_from_one_that_refuses(
    stand: Stand, tmp_path: Any
) -> None:
    engine = attached(stand, sync_dir=str(tmp_path))

    def refuse(handler: BaseHTTPRequestHandler) -> None:
        says("start_weight_update must be called before update_weights", 500)(handler)

    stand.answers["/update_weights"] = refuse
    with pytest.raises(EngineError, match=r"must see the trainer's .* vllm_sync_dir") as caught:
        engine.load(tensors, "x/1")
    assert not isinstance(caught.value, EngineRestartedError)

    def restart(handler: BaseHTTPRequestHandler) -> None:
        stand.rpc["boresight_facts"]["instance_id"] = "second"
        refuse(handler)

    stand.answers["/update_weights"] = restart
    with pytest.raises(EngineRestartedError, match="was restarted during a sync"):
        engine.load(tensors, "x/1")
    assert not list(tmp_path.iterdir())  # no weights are left lying about


def test_a_sync_in_the_middle_of_which_the_server_goes_away(stand: Stand, tmp_path: Any) -> None:
    engine = attached(stand, sync_dir=str(tmp_path))
    stand.answers["/finish_weight_update"] = drop
    with pytest.raises(EngineRestartedError):
        engine.load(tensors, "x/1")
    assert not list(tmp_path.iterdir())
