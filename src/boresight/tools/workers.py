"""Sync tools in processes of their own, so that one that hangs, in a busy loop or in C, ends at its deadline.

A process has its own copy of what a function refers to. So only a function without a state of its own runs there: one that refers to a
mutable object outside itself, one that cannot be pickled, and the methods of an environment stay in the training process, in a thread.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from boresight.workers import Reply, Worker

MEMORY_BYTES = 8 * 2**30
"""Data that a worker may allocate."""

FIXED = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, FunctionType, BuiltinFunctionType)
"""What a function may refer to and still have no state: texts, numbers, classes, modules and functions."""


class PickledTools:
    """The function that a worker calls. Tools are unpickled when it starts, which may import what is slow and counts in no call's time."""

    def __init__(self, payloads: Mapping[str, bytes]) -> None:
        self.payloads = dict(payloads)

    def __getstate__(self) -> dict[str, bytes]:
        return self.payloads

    def __setstate__(self, payloads: dict[str, bytes]) -> None:
        self.loaded = {name: _loaded(payload) for name, payload in payloads.items()}

    def __call__(self, name: str, arguments: Mapping[str, Any]) -> Any:
        tool = self.loaded[name]
        if isinstance(tool, Exception):
            raise tool
        return tool(**arguments)


def _loaded(payload: bytes) -> Callable[..., Any] | Exception:
    """The tool, or why it cannot be loaded in this process."""
    try:
        return cloudpickle.loads(payload)
    except Exception as error:  # what importing the tool's module raises
        return error


class ToolWorkers:
    """Processes that call tools, started when the first call comes.

    Args:
        tools: functions by name; those that cannot run in a process are left to threads (`reasons`).
        num_workers: processes; 0: none.
    """

    def __init__(self, tools: Mapping[str, Callable[..., Any]], num_workers: int) -> None:
        self.reasons: dict[str, str] = {}
        """Why a sync tool stays in the training process."""
        self._tools: dict[str, Callable[..., Any]] = {}
        payloads: dict[str, bytes] = {}
        for name, tool in tools.items():
            if inspect.iscoroutinefunction(tool) or num_workers == 0:
                continue
            if reason := why_not_elsewhere(tool):
                self.reasons[name] = reason
                continue
            payloads[name], self._tools[name] = cloudpickle.dumps(tool), tool
        payload = cloudpickle.dumps(PickledTools(payloads))
        self._all = [Worker(payload, MEMORY_BYTES) for _ in range(num_workers if payloads else 0)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def runs(self, name: str, tool: Callable[..., Any]) -> bool:
        """Whether this tool runs in a worker."""
        return self._tools.get(name) is tool

    def call(self, name: str, arguments: Mapping[str, Any], timeout_s: float) -> Reply:
        """Call a tool. Time spent waiting for a free worker does not count."""
        worker = self._idle.get()
        try:
            return worker.call({"name": name, "arguments": dict(arguments)}, timeout_s)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in self._all:
            worker.kill()


def why_not_elsewhere(tool: Callable[..., Any]) -> str | None:
    """Why a function cannot run in another process without a change of meaning; None if it can."""
    if not isinstance(tool, FunctionType):
        return "it is no plain function, and may have a state"
    found = inspect.getclosurevars(tool)
    for name, value in {**found.nonlocals, **found.globals}.items():
        if not _is_fixed(value):
            return f"it refers to {name}, a {type(value).__name__} of the training process"
    try:
        cloudpickle.dumps(tool)
    except Exception as error:  # of any kind: `__reduce__` is the user's
        return f"it cannot be pickled ({error})"
    return None


def _is_fixed(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_fixed, value))
    return isinstance(value, FIXED)
