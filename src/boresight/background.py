"""One event loop in a daemon thread that runs as long as the process, for calls that wait for other machines.

A notebook's main thread already runs an event loop, and a second one cannot run inside it. A call in another thread can also be
cancelled at once, by Ctrl-C or because another call failed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_background(coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Start a coroutine on the background loop. The returned future gives its result; cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="boresight-background", daemon=True).start()
    return loop
