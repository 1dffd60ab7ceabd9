"""The client's edge: what a server may do to a call. A small HTTP server on this machine answers as vLLM's endpoints do, or refuses to;
what needs a real vLLM is in `test_faults`."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from boresight.errors import ConfigError, EngineError, EngineRestartedError
from boresight.rollout.vllm import client as module
from boresight.rollout.vllm.engine import EngineProtocolError, Request
from boresight.rollout.vllm.protocol.codec import to_dict
from boresight.rollout.vllm.protocol.messages import EngineFacts
from boresight.rollout.vllm.server import ServerEngine

from .conftest import free_port

Reply = Callable[[BaseHTTPRequestHandler], None]


def says(body: Any = None, status: int = 200) -> Reply:
    """JSON, or the text itself."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        text = (body if isinstance(body, str) else json.dumps({} if body is None else body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def half(handler: BaseHTTPRequestHandler) -> None:
    """A part of an answer, and the end of the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: no single wait is long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.over.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(b" ")


def hang(handler: BaseHTTPRequestHandler) -> None:
    """No answer until the client lets go, which is noted."""
    server: Any = handler.server
    server.hanging.release()
    handler.connection.settimeout(60)
    if not handler.connection.recv(1):
        server.let_go.release()


FACTS = EngineFacts(
    instance_id="first",
    transport="file",
    world_size=1,
    num_stages=1,
    num_replicas=1,
    dtype="float32",
    logprobs_mode="processed_logprobs",
    max_model_len=256,
    max_num_seqs=8,
    max_lora_rank=None,
    bans_ids=True,
)


class Stand(ThreadingHTTPServer):
    """Answers like a vLLM server that has what training needs, but where a test says otherwise."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        self.over = threading.Event()
        self.hanging, self.let_go = threading.Semaphore(0), threading.Semaphore(0)
        self.paths = ["/collective_rpc", "/start_weight_update", "/inference/v1/generate"]
        self.rpc: dict[str, Any] = {
            "boresight_facts": to_dict(FACTS),
            "boresight_abandon_update": {"was_active": False, "instance_id": "first"},
        }
        self.answers: dict[str, Reply] = {
            "/health": says(),
            "/openapi.json": lambda handler: says({"paths": dict.fromkeys(self.paths)})(handler),
            "/is_paused": says({"is_paused": False}),
            "/is_sleeping": says({"is_sleeping": False}),
        }

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that lets go is no error here."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        path = self.path.partition("?")[0]
        server.asked.append(body.get("method", path))
        if path == "/collective_rpc" and body["method"] in server.rpc:
            says({"results": [server.rpc[body["method"]]]})(self)
        else:
            server.answers.get(path, says())(self)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def stand() -> Iterator[Stand]:
    yield from running(Stand())


def running(stand: Stand) -> Iterator[Stand]:
    thread = threading.Thread(target=stand.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield stand
    stand.over.set()
    stand.shutdown()
    stand.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DYING_S", 0.01)


REQUESTS = [Request([1, 2, 3], [], {"n": 1}) for _ in range(3)]
CHOICE = {"index": 0, "finish_reason": "stop", "token_ids": [5], "logprobs": {"content": [{"logprob": -1.5}]}}
COMPLETED = {"prompt_token_ids": [1, 2, 3], "choices": [CHOICE]}


def attached(stand: Stand, **options: Any) -> ServerEngine:
    return ServerEngine(stand.url, **{"timeout_s": 1.0, "request_timeout_s": 5.0, **options})


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


def test_a_server_that_does_not_know_boresight_is_refused(stand: Stand) -> None:
    del stand.rpc["boresight_facts"]
    stand.answers["/collective_rpc"] = says("no attribute boresight_facts", 500)
    with pytest.raises(ConfigError, match="has no boresight plugin: start it with boresight vllm-serve"):
        attached(stand)


def test_a_server_that_takes_weights_in_another_way_is_refused(stand: Stand) -> None:
    stand.rpc["boresight_facts"]["transport"] = None
    with pytest.raises(ConfigError, match="keeps no record: start it with boresight vllm-serve"):
        attached(stand)


@pytest.mark.parametrize(
    ("fact", "flag"), [("num_stages", "--pipeline-parallel-size 2"), ("num_replicas", "--data-parallel-size 2")]
)
def test_a_server_over_which_no_sync_can_be_verified_is_refused(stand: Stand, fact: str, flag: str) -> None:
    stand.rpc["boresight_facts"][fact] = 2
    with pytest.raises(
        ConfigError, match=rf"has {flag}, with which a sync cannot be verified: use only --tensor-parallel-size"
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


def test_attaching_survives_a_restart(stand: Stand) -> None:
    def once(handler: BaseHTTPRequestHandler) -> None:
        stand.answers["/is_paused"] = says({"is_paused": False})
        drop(handler)

    stand.answers["/is_paused"] = once
    assert attached(stand).transport == "file"


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


def test_many_requests_share_one_deadline(stand: Stand) -> None:
    """However the server staggers them."""
    engine = attached(stand, request_timeout_s=1.0)

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.4 * stand.asked.count("/inference/v1/generate"))
        says(COMPLETED)(handler)

    stand.answers["/inference/v1/generate"] = slowly
    with pytest.raises(EngineError, match="vllm_request_timeout"):
        engine.generate(REQUESTS * 3)
