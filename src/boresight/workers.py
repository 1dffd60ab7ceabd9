"""Functions of the user in processes of their own, which are killed at a deadline: rewards, and tools.

A function that raises fails in its call alone. A worker that misses its deadline, exits, crashes or runs out of memory is replaced at the
next call. The process runs `worker_process.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Literal

import cloudpickle

START_S = 120.0
"""Seconds that a worker has to start and to load its function."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of one call."""

    kind: Literal["ok", "raised", "timed_out", "ended"]
    """Ended: the process did, or it could not be reached."""
    value: Any = None
    """What the function returned."""
    message: str = ""
    """Why it returned nothing."""
    logged: Sequence[tuple[str, str, Any]] = ()
    """(`log_metric` or `log_extra`, name, value) in the order of the calls."""
    seconds: float = 0.0


class Worker:
    """This process's end of a worker, whose process is started when it is first needed.

    Args:
        payload: the function, pickled by cloudpickle.
        memory_bytes: data that the process may allocate.
    """

    def __init__(self, payload: bytes, memory_bytes: int) -> None:
        self.payload = payload
        self.memory_bytes = memory_bytes
        self.process: subprocess.Popen[bytes] | None = None
        self._number = 0

    def call(self, arguments: Mapping[str, Any], timeout_s: float) -> Reply:
        """Call the function with keyword arguments. The time to start a process does not count."""
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            self._number += 1
            self.connection.send_bytes(cloudpickle.dumps((self._number, dict(arguments))))
            reply = self._reply(time.monotonic() + timeout_s)
            if reply is None:
                self.kill()
                return Reply("timed_out", message=f"took longer than {timeout_s:g} s", seconds=timeout_s)
            returned, logged, error, seconds = reply
        except (EOFError, OSError):
            status = self.kill()
            return Reply("ended", message=f"ended its worker process (exit status {status})")
        except Exception as error:
            self.kill()
            return Reply("ended", message=f"cannot be reached: {error}")
        if error is not None:
            return Reply("raised", message=error, seconds=seconds)
        return Reply("ok", returned, logged=logged, seconds=seconds)

    def _reply(self, deadline: float) -> Any:
        """The answer to the latest call; None where none comes in time. An answer with another number, which only a copy of the worker
        process can have sent, is left out."""
        while self.connection.poll(max(deadline - time.monotonic(), 0)):
            number, *reply = cloudpickle.loads(self.connection.recv_bytes())
            if number == self._number:
                return reply
        return None

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        # A worker leads a process group, so that processes it started are killed with it.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # else the worker's own folder would come first in sys.path
                str(Path(__file__).with_name("worker_process.py")),
                str(theirs.fileno()),
                str(self.memory_bytes),
            ],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.connection.send_bytes(self.payload)
        if not self.connection.poll(START_S):
            raise OSError(f"did not start within {START_S:g} s")
        self.connection.recv()

    def kill(self) -> int | None:
        """End the process and all it started; its exit status."""
        if self.process is None:
            return None
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.process.wait(0.2)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.process = None
        self.connection.close()
        return status
