"""A client of a vLLM server that may become unavailable and recover at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from boresight.errors import ConfigError, EngineError, EngineGoneError, EngineRestartedError
from boresight.rollout.vllm.calls import Call, Calls, LostError, OverdueError

logger = logging.getLogger(__name__)

LOG_EVERY_S = 10.0
"""Seconds between two log lines while waiting for a server."""
DYING_S = 1.0
"""Seconds to let a failing server exit before its health is checked."""
HEALTH_S = 5.0
"""Seconds within which a running server answers a health check."""
UNAVAILABLE = (502, 503, 504)
"""Status codes of an engine that is shutting down, or of a gateway in front of it."""
PLAIN_TEXT = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths that vLLM answers in plain text."""


class ServerClient:
    """Calls to a vLLM server, each with a deadline. If the server becomes unavailable, the client waits until it is up again, then
    raises `EngineRestartedError`; or, with `waits` off, raises `EngineGoneError` at once.

    Args:
        url: the server's address.
        timeout_s: how long to wait for a server that is not up.
        request_timeout_s: the time limit for one call, or a batch of completions.
        alive: whether the trainer's own server still runs, so that the client does not wait for a dead one.

    Raises:
        ConfigError: the address is invalid.
    """

    def __init__(
        self, url: str, *, timeout_s: float, request_timeout_s: float, alive: Callable[[], bool] | None = None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"vllm_server_base_url={url!r} is not an address: write http://{url}.")
        self.url = url.rstrip("/")
        self.where = f"the vLLM server at {self.url}"
        self.timeout_s = timeout_s
        self.request_timeout_s = request_timeout_s
        self.waits = True
        """Whether a call to a server that became unavailable waits for it. Off where other servers go on meanwhile."""
        self._alive = alive
        self._calls = Calls(self.url, request_timeout_s)

    def wait(self, *, gone: bool = False) -> None:
        """Wait until the server is up.

        Args:
            gone: the server was up before. A server that is shutting down may still answer health checks, so wait a moment first.

        Raises:
            EngineError: it is not up within `timeout_s`.
        """
        start = logged = time.monotonic()
        time.sleep(DYING_S if gone else 0.0)
        while not self.is_up():
            now = time.monotonic()
            if self._alive is not None and not self._alive():
                raise EngineError(f"{self.where} has ended.")
            if now - start > self.timeout_s:
                raise EngineError(
                    f"{self.where} {'became unavailable and did not recover' if gone else 'was not up'} within "
                    f"vllm_server_timeout={self.timeout_s:g} s. Start it with boresight vllm-serve --model …, or raise the timeout."
                )
            if now - logged > LOG_EVERY_S:
                logged = now
                logger.warning("waiting for %s: %.0f of %.0f s", self.where, now - start, self.timeout_s)
            time.sleep(0.5)

    def is_up(self) -> bool:
        """Whether the server answers a health check."""
        try:
            (response,) = self._calls.together([("GET", "/health", {})], deadline_s=HEALTH_S)
        except (LostError, OverdueError):
            return False
        return response.status_code == 200

    def send(self, method: str, path: str, **options: Any) -> Any:
        """Send one call and return its JSON response; see `send_all`."""
        return self.send_all([(method, path, options)])[0]

    def send_all(self, calls: Sequence[Call]) -> list[Any]:
        """Send calls concurrently and return their JSON responses.

        Raises:
            EngineRestartedError: the server became unavailable, and is up again.
            EngineGoneError: with `waits` off, the server became unavailable, or exceeded the deadline.
            EngineError: the server refused a call, exceeded the deadline, or did not recover.
        """
        try:
            responses = self._calls.together(calls)
            return [self._read(path, response) for (_, path, _), response in zip(calls, responses, strict=True)]
        except OverdueError as error:
            kind = EngineError if self.waits else EngineGoneError
            raise kind(
                f"{self.where} did not answer {calls[0][1]} within vllm_request_timeout={self.request_timeout_s:g} s. If it is slow, raise "
                "the timeout; if it hangs, restart it."
            ) from error
        except LostError as error:
            if not self.waits:
                raise EngineGoneError(f"{self.where} became unavailable ({error}).") from error
            logger.warning("%s became unavailable (%s).", self.where, error)
            self.wait(gone=True)
            raise EngineRestartedError(f"{self.where} became unavailable ({error}), and is up again.") from error

    def _read(self, path: str, response: Any) -> Any:
        answer = f"{response.status_code} to {path}: {response.text[:1000]}"
        if response.status_code in UNAVAILABLE or (response.status_code >= 500 and not self.is_up()):
            raise LostError(answer)
        if response.status_code >= 400:
            raise EngineError(f"{self.where} answered {answer}")
        if path in PLAIN_TEXT:
            return {}
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise EngineError(
                f"{self.where} answered {answer}, which is not JSON. Does another program use this address?"
            ) from error
