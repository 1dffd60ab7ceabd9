"""Daemon threads, and event loops in them, for calls that wait for other machines and processes.

A notebook's main thread already runs an event loop, and a second one cannot run inside it. A call in another thread can also be
cancelled at once, by Ctrl-C or because another call failed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundLoop:
    """An event loop that runs in a daemon thread until it is abandoned, whatever its coroutines do.

    A coroutine that stops the loop, or raises `SystemExit` or `KeyboardInterrupt` through it, does not end it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._abandoned = False
        threading.Thread(target=self._run, name="boresight-background", daemon=True).start()

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start a coroutine. The returned future gives its result; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def running(self) -> asyncio.Task[Any] | None:
        """The task that holds the loop at this moment; None while the loop waits."""
        return asyncio.current_task(self._loop)

    def abandon(self) -> None:
        """Let the thread end as soon as the coroutine that holds it gives way. Nothing else will run on this loop."""
        self._abandoned = True
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        while not self._abandoned:
            try:
                self._loop.run_forever()
            except BaseException:
                continue


def in_background(coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Start a coroutine on the loop that lives as long as the process; see `BackgroundLoop.start`."""
    return _loop().start(coroutine)


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Run work in a daemon thread of its own, which does not keep the process from ending. The returned future gives its result."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="boresight-work", daemon=True).start()
    return future


@cache
def _loop() -> BackgroundLoop:
    return BackgroundLoop()
