"""The answers of all data-parallel replicas to a call. vLLM's own `/collective_rpc` asks all, and returns the first one's alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from boresight.rollout.vllm.protocol.messages import REPLICAS_PATH

Application = Callable[[Any, Any, Any], Awaitable[None]]


class AskReplicas:
    """An ASGI middleware that answers `REPLICAS_PATH`: a body as `/collective_rpc` takes it, `{"method", "args"}`, is answered with
    `{"results"}`, the first worker's answer in each replica.

    Args:
        app: vLLM's application, which answers all else.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != REPLICAS_PATH:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        call = await request.json()
        core: Any = request.app.state.engine_client.engine_core
        answers = await core.call_utility_all_async("collective_rpc", call["method"], None, tuple(call["args"]), {})
        await JSONResponse({"results": [workers[0] for workers in answers]})(scope, receive, send)
