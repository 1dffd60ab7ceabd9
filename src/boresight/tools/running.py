"""Calls of many completions, run side by side, each with a deadline.

A completion's calls run one after another, because they may share an environment; those of other completions run meanwhile. Async tools
are cancelled at the deadline, and functions in workers (`workers.py`) are killed. A thread cannot be ended from outside: a method of an
environment that hangs is left to itself in a daemon thread, and the environment that it holds is not used again.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Literal

from boresight.background import in_background
from boresight.tools.parsing import ToolCall
from boresight.tools.workers import ToolWorkers

Kind = Literal["ok", "raised", "timed_out", "unknown_tool", "unreadable", "refused"]
"""How a call ended. All but the first are failures, which are answered to the policy as an error."""

MAX_THREADS = 32
"""Completions whose calls run at the same time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one call."""

    call: ToolCall
    kind: Kind
    value: Any
    """What the tool returned; a text that says what went wrong if `kind` is not "ok"."""
    seconds: float = 0.0


def run_calls(
    batches: Sequence[tuple[Sequence[ToolCall], Mapping[str, Callable[..., Any]]]],
    timeout_s: float,
    workers: ToolWorkers | None = None,
) -> list[list[Outcome]]:
    """The outcomes of every completion's calls.

    Args:
        batches: for each completion, its calls, and the tools that it may call by name.
        timeout_s: seconds that one call may take.
        workers: run the tools that they can; None: all sync tools run in threads.
    """
    if not batches:
        return []
    with ThreadPoolExecutor(min(MAX_THREADS, len(batches)), thread_name_prefix="boresight-tools") as threads:
        return list(threads.map(lambda batch: _in_turn(batch[0], batch[1], timeout_s, workers), batches))


def _in_turn(
    calls: Sequence[ToolCall], tools: Mapping[str, Callable[..., Any]], timeout_s: float, workers: ToolWorkers | None
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for call in calls:
        if any(outcome.kind == "timed_out" for outcome in outcomes):
            outcomes.append(Outcome(call, "timed_out", "not run: an earlier call of this turn did not end in time"))
        else:
            outcomes.append(_outcome(call, tools, timeout_s, workers))
    return outcomes


def _outcome(
    call: ToolCall, tools: Mapping[str, Callable[..., Any]], timeout_s: float, workers: ToolWorkers | None
) -> Outcome:
    if call.error is not None:
        return Outcome(call, "unreadable", call.error)
    tool = tools.get(call.name)
    if tool is None:
        return Outcome(call, "unknown_tool", f"there is no tool {call.name!r}; there are: {', '.join(sorted(tools))}")
    start = time.monotonic()
    try:
        inspect.signature(tool).bind(**call.arguments)
    except TypeError as error:
        return Outcome(call, "raised", f"TypeError: {error}")
    if workers is not None and workers.runs(call.name, tool):
        reply = workers.call(call.name, call.arguments, timeout_s)
        if reply.kind == "ok":
            return Outcome(call, "ok", reply.value, reply.seconds)
        return Outcome(call, "timed_out" if reply.kind == "timed_out" else "raised", reply.message, reply.seconds)
    future = (_awaited if inspect.iscoroutinefunction(tool) else _threaded)(tool, call.arguments, timeout_s)
    try:
        value = future.result(timeout_s)
    except (FutureTimeoutError, TimeoutError) as error:
        future.cancel()
        if time.monotonic() - start >= 0.9 * timeout_s:
            return Outcome(call, "timed_out", f"took longer than {timeout_s:g} s", time.monotonic() - start)
        return Outcome(call, "raised", _said(error), time.monotonic() - start)  # the tool's own TimeoutError
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not future.done():
            raise
        return Outcome(call, "raised", _said(error), time.monotonic() - start)
    return Outcome(call, "ok", value, time.monotonic() - start)


def _awaited(tool: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> Future[Any]:
    async def limited() -> Any:
        return await asyncio.wait_for(tool(**arguments), timeout_s)

    return in_background(limited())


def _threaded(tool: Callable[..., Any], arguments: Mapping[str, Any], timeout_s: float) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # it cannot be cancelled: a tool may still return after its deadline

    def run() -> None:
        try:
            future.set_result(tool(**arguments))
        except BaseException as error:  # sys.exit is a failure of the tool
            future.set_exception(error)

    threading.Thread(target=run, name=f"boresight-tool-{timeout_s:g}s", daemon=True).start()
    return future


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
