"""A worker: a process that calls one function of the user, once at a time; `workers.py` is the other end.

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
    """Serve calls until the connection closes: it receives a pickled function, then pairs of a number and keyword arguments.

    It sends (the call's number, return value, log calls, error or None, seconds) for each. A process that the function forks off ends
    where it would go on to serve calls: it would answer those of its parent.
    """
    _limit_memory(memory_bytes)
    func = cloudpickle.loads(connection.recv_bytes())
    process_id = os.getpid()
    connection.send(process_id)
    while True:
        try:
            number, arguments = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            reply = _called(func, number, arguments)
        finally:
            if os.getpid() != process_id:
                os._exit(0)
        connection.send_bytes(reply)


def _called(func: Any, number: int, arguments: dict[str, Any]) -> bytes:
    logged: list[tuple[str, str, Any]] = []
    if "log_metric" in arguments:
        arguments["log_metric"] = lambda name, value: logged.append(("log_metric", name, float(value)))
    if "log_extra" in arguments:
        arguments["log_extra"] = lambda column, values: logged.append(("log_extra", column, values))
    start = time.perf_counter()
    try:
        returned = func(**arguments)
        return cloudpickle.dumps((number, returned, logged, None, time.perf_counter() - start))
    except MemoryError:
        raise  # leaked memory stays leaked: the pool starts another worker
    except BaseException as error:  # sys.exit is a failure of the function
        last_line = traceback.format_exception_only(error)[-1].strip()
        return cloudpickle.dumps((number, None, [], last_line, time.perf_counter() - start))


def _limit_memory(limit: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has limits
        import resource  # here, because Windows has none

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
