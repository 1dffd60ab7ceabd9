"""A small HTTP server on this machine that answers as vLLM's endpoints do, or refuses to, and clients of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.protocol.codec import to_dict
from boresight.rollout.vllm.protocol.messages import REPLICAS_PATH, EngineFacts
from boresight.rollout.vllm.server import ServerEngine

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
    num_coupled=1,
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
        if path in ("/collective_rpc", REPLICAS_PATH) and body["method"] in server.rpc:
            says({"results": [server.rpc[body["method"]]]})(self)
        else:
            server.answers.get(path, says())(self)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        """Silent."""


def running(stand: Stand) -> Iterator[Stand]:
    thread = threading.Thread(target=stand.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield stand
    stand.over.set()
    stand.shutdown()
    stand.server_close()


REQUESTS = [Request([1, 2, 3], [], {"n": 1}) for _ in range(3)]
CHOICE = {"index": 0, "finish_reason": "stop", "token_ids": [5], "logprobs": {"content": [{"logprob": -1.5}]}}
COMPLETED = {"prompt_token_ids": [1, 2, 3], "choices": [CHOICE]}


def attached(stand: Stand, **options: Any) -> ServerEngine:
    return ServerEngine(stand.url, **{"timeout_s": 1.0, "request_timeout_s": 5.0, **options})
