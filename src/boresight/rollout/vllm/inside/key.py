"""The key that a server asks of every request, if one is set: vLLM's control calls let whoever reaches them run its methods."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

from boresight.rollout.vllm.protocol.messages import KEY

Application = Callable[[Any, Any, Any], Awaitable[None]]
OPEN = ("/health", "/ping")
"""Paths that say only whether the server is up."""


class RequireKey:
    """An ASGI middleware: without the right `Authorization: Bearer KEY`, a request is answered with 401.

    Args:
        app: the application behind it.
        key: the key; None: that of the environment, and without one every request passes.
    """

    def __init__(self, app: Application, key: str | None = None) -> None:
        self._app = app
        self._key = os.environ.get(KEY, "") if key is None else key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._key and scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
                await _refuse(scope, send)
                return
        await self._app(scope, receive, send)


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = (
        f"this server asks for a key: set {KEY} to the same value on both sides. Without it, the server's user alone reaches it, from "
        "the same machine and with the same HF_HOME"
    ).encode()
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
