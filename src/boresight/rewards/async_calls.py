"""Async reward functions: all on one event loop, none beyond its deadline, whatever it does.

| what a function does | what happens |
|---|---|
| it waits too long | it is cancelled at the deadline, and has failed |
| it raises, `SystemExit`, `KeyboardInterrupt` and `CancelledError` included | it has failed; the others go on |
| it stops the event loop | the loop goes on |
| it blocks the loop (`time.sleep`), or swallows its cancellation | it has failed, as those that the loop could not run; it is replaced |
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from boresight.background import BackgroundLoop
from boresight.errors import RewardError

GRACE_S = 1.0
"""Seconds beyond the deadline that the loop has to cancel a function and to return, before it counts as blocked."""


class AsyncCalls:
    """The event loop of async reward functions. HTTP clients stay usable from call to call, as long as no function blocks the loop."""

    def __init__(self) -> None:
        self._loop: BackgroundLoop | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str, timeout_s: float) -> Future[Any]:
        """Start a function's coroutine; the future holds what it returned, or the exception that it raised, as a value."""
        if self._loop is None:
            self._loop = BackgroundLoop()
        return self._loop.start(_outcome(coroutine, name, timeout_s))

    def outcomes(self, running: Mapping[str, Future[Any]], deadline: float) -> dict[str, Any]:
        """Name → what the function returned, or the exception that it raised.

        Args:
            running: futures of `start`, by the functions' names.
            deadline: on the clock of `time.monotonic`.

        Raises:
            RewardError: as the function raised it.
        """
        found: dict[str, Any] = {}
        for name, future in running.items():
            with contextlib.suppress(FutureTimeoutError):
                found[name] = future.result(max(deadline + GRACE_S - time.monotonic(), 0))
        if len(found) < len(running):
            found |= self._blocked({name: future for name, future in running.items() if name not in found})
        return found

    def _blocked(self, waiting: Mapping[str, Future[Any]]) -> dict[str, Exception]:
        """The failures of functions that the loop did not finish. The loop is given up."""
        assert self._loop is not None
        task = self._loop.running()
        self._loop.abandon()
        self._loop = None
        for future in waiting.values():
            future.cancel()
        culprit = task.get_name() if task is not None and task.get_name() in waiting else None
        return {
            name: TimeoutError(
                "did not give way at reward_timeout: in an async function, await what takes long (asyncio.sleep, not time.sleep), or make "
                "it a sync function with reward_workers"
                if culprit in (None, name)
                else f"could not run, because {culprit!r} blocked the event loop"
            )
            for name in waiting
        }


async def _outcome(coroutine: Coroutine[Any, Any, Any], name: str, timeout_s: float) -> Any:
    """What the coroutine returns, or the exception it raises, as a value: one failure leaves its neighbours running."""
    task = asyncio.ensure_future(_contained(coroutine))
    task.set_name(name)
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    if done:
        return task.result()
    task.cancel()
    await asyncio.wait([task])  # one that swallows its cancellation is given up by the caller
    return TimeoutError(f"took longer than reward_timeout={timeout_s:g} s")


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except RewardError:
        raise
    except asyncio.CancelledError:
        return RuntimeError("raised CancelledError")
    except BaseException as error:
        return error if isinstance(error, Exception) else RuntimeError(f"raised {type(error).__name__}: {error}")
