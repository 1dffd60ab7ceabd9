"""The worker of a reward pool: a process that calls one reward function on one completion at a time.

Run as a file, not as a module, so that a worker starts without importing boresight; only what the function itself needs is loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle


def serve(connection: Connection, memory_bytes: int) -> None:
    """Serve calls until the connection closes: it receives a pickled function, then sets of keyword arguments.

    It sends (return value, log calls, error or None, seconds) for each set.
    """
    _limit_memory(memory_bytes)
    func = cloudpickle.loads(connection.recv_bytes())
    connection.send(os.getpid())
    while True:
        try:
            arguments = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(_called(func, arguments))


def _called(func: Any, arguments: dict[str, Any]) -> bytes:
    logged: list[tuple[str, str, Any]] = []
    for name in ("log_metric", "log_extra"):
        if name in arguments:
            arguments[name] = lambda key, value, name=name: logged.append((name, key, value))
    start = time.perf_counter()
    try:
        returned = func(**arguments)
        return cloudpickle.dumps((returned, logged, None, time.perf_counter() - start))
    except MemoryError:
        raise  # leaked memory stays leaked: the pool starts another worker
    except Exception as error:
        last_line = traceback.format_exception_only(error)[-1].strip()
        return cloudpickle.dumps((None, [], last_line, time.perf_counter() - start))


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource  # here, because Windows has none

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
