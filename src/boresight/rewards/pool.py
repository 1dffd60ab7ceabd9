"""Reward functions in processes of their own, killed when they are overdue."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import cloudpickle

from boresight.errors import ConfigError
from boresight.rewards.text import Failure, RewardFunc

START_S = 120.0
"""How long a worker may take to start and to load its function."""

PER_CALL = ("trainer_state", "log_metric", "log_extra")
"""Keywords that are not one entry per completion."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one completion."""

    value: Any
    """What the function returned for it, or a `Failure`."""
    logged: Sequence[tuple[str, str, Any]]
    """(`log_metric` or `log_extra`, name, value) in the order of the calls."""
    seconds: float


class RewardPool:
    """Workers for one reward function; it is called with one completion at a time.

    A worker that raises has failed on its completion alone. One that is overdue, exits or runs out of memory is replaced. So
    completions are unharmed by their neighbours, and a function must not expect to see the whole batch at once.

    The function travels by value where it was defined in a script or a notebook, and by its module's name otherwise.

    Args:
        func: sync; must be picklable by cloudpickle.
        num_workers: processes, started when the first completion comes.
        timeout_s: seconds per completion.
        memory_gib: data that a worker may allocate.

    Raises:
        ConfigError: the function cannot be sent to another process.
    """

    def __init__(self, func: RewardFunc, *, num_workers: int, timeout_s: float, memory_gib: float = 8.0) -> None:
        try:
            self._payload = cloudpickle.dumps(func)
        except Exception as error:
            raise ConfigError(
                f"{func!r} cannot run in a worker process ({error}): set reward_workers=0, or keep what it holds out of it."
            ) from error
        self.timeout_s = timeout_s
        self.memory_bytes = int(memory_gib * 2**30)
        self.num_workers = num_workers
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._idle.put(_Worker(self))
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="boresight-reward")

    def __call__(self, inputs: Mapping[str, Any], num_completions: int) -> list[Answer]:
        """One answer per completion.

        Args:
            inputs: keyword arguments of the function for the whole batch.
        """
        shared = {name: value for name, value in inputs.items() if name in PER_CALL}
        shared |= dict.fromkeys(shared.keys() & {"log_metric", "log_extra"})  # the worker puts its own in their place
        each = [
            shared | {name: [values[index]] for name, values in inputs.items() if name not in PER_CALL}
            for index in range(num_completions)
        ]
        return list(self._threads.map(self._one, each))

    def _one(self, arguments: dict[str, Any]) -> Answer:
        worker = self._idle.get()
        try:
            return worker.ask(arguments)
        finally:
            self._idle.put(worker)

    @property
    def payload(self) -> bytes:
        """The pickled function."""
        return self._payload

    def close(self) -> None:
        """End all workers."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().kill()


class _Worker:
    """The near end of a process, which is started when it is needed."""

    def __init__(self, pool: RewardPool) -> None:
        self.pool = pool
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, arguments: dict[str, Any]) -> Answer:
        timeout = self.pool.timeout_s
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            self.orders.send_bytes(cloudpickle.dumps(arguments))
            if not self.orders.poll(timeout):
                self.kill()
                return Answer(Failure(f"took longer than reward_timeout={timeout:g} s"), (), timeout)
            returned, logged, error, seconds = cloudpickle.loads(self.orders.recv_bytes())
        except (EOFError, OSError):
            status = self.kill()
            return Answer(Failure(f"ended its worker process (exit status {status})"), (), 0.0)
        except Exception as error:
            self.kill()
            return Answer(Failure(f"cannot be reached: {error}"), (), 0.0)
        if error is not None:
            return Answer(Failure(error), (), seconds)
        return Answer(returned, logged, seconds)

    def _start(self) -> None:
        self.orders, theirs = Pipe()
        # A worker leads a process group, so that what it started dies with it.
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-P",  # the worker's own folder has a math.py
                str(Path(__file__).with_name("worker.py")),
                str(theirs.fileno()),
                str(self.pool.memory_bytes),
            ],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.orders.send_bytes(self.pool.payload)
        if not self.orders.poll(START_S):
            raise OSError(f"did not start within {START_S:g} s")
        self.orders.recv()

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
        self.orders.close()
        return status
