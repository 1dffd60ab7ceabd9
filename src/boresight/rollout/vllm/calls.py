"""HTTP calls with a deadline, which can be cancelled at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from boresight.background import in_background
from boresight.errors import ConfigError
from boresight.rollout.vllm.keys import find_key

MAX_CONCURRENT = 64
"""Most calls in flight at a time. The server queues calls beyond its own capacity."""
CONNECT_S = 10.0
"""Seconds to wait for a connection to an address that does not respond."""

Call = tuple[str, str, dict[str, Any]]
"""Method, path, and httpx's options of a request."""


class LostError(Exception):
    """The connection was refused or lost. It is unknown whether the server executed the call."""


class OverdueError(Exception):
    """The deadline passed."""


class Calls:
    """Calls to one address. Each has a connection of its own, so that no connection goes stale during training.

    Calls run in the background thread, so that Ctrl-C or the failure of one call cancels the others at once. A server detects a closed
    connection and aborts its request.

    Args:
        url: the address.
        deadline_s: the time limit for one call, or for several that are sent together.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        try:
            import httpx  # here, because it is optional: the extras `server` and `vllm`
        except ImportError as error:
            raise ConfigError("vllm_mode='server' needs httpx: pip install 'boresight[server]'") from error
        self._httpx = httpx
        self.deadline_s = deadline_s
        self._url = url
        self._options: dict[str, Any] = {
            "base_url": url,
            "timeout": httpx.Timeout(None, connect=CONNECT_S),
            "limits": httpx.Limits(max_connections=MAX_CONCURRENT, max_keepalive_connections=0),
            "trust_env": False,  # no proxy between trainer and engine
            "verify": httpx.create_ssl_context(trust_env=False),
        }

    def together(self, calls: Sequence[Call], deadline_s: float | None = None) -> list[Any]:
        """Send calls concurrently, and return httpx's responses in the order of the calls. If one fails, the others are cancelled.

        Raises:
            LostError: a connection was refused or lost.
            OverdueError: not all responses arrived in time.
        """
        future = in_background(self._send(calls, self.deadline_s if deadline_s is None else deadline_s))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _client(self) -> Any:
        """A client with the server's key of now: a server that was restarted has another."""
        key = find_key(self._url)
        return self._httpx.AsyncClient(**self._options, headers={"Authorization": f"Bearer {key}"} if key else {})

    async def _send(self, calls: Sequence[Call], deadline_s: float) -> list[Any]:
        try:
            async with asyncio.timeout(deadline_s), self._client() as client:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._one(client, *call)) for call in calls]
                return [task.result() for task in tasks]
        except TimeoutError as error:
            raise OverdueError(f"no response within {deadline_s:g} s") from error
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _one(self, client: Any, method: str, path: str, options: dict[str, Any]) -> Any:
        try:
            return await client.request(method, path, **options)
        except self._httpx.TransportError as error:
            raise LostError(str(error) or type(error).__name__) from error
