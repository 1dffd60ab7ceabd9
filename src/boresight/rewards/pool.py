"""Reward functions in processes of their own, which are killed at a deadline."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cloudpickle

from boresight.errors import ConfigError
from boresight.rewards.function import Failure, RewardFunc
from boresight.workers import Worker

PLAIN = (str, bytes, int, float, bool, type(None))

PER_CALL = ("trainer_state", "log_metric", "log_extra")
"""Keywords without one entry per completion."""


def light_state(state: Any) -> Any:
    """The fields of transformers' `TrainerState` that are numbers, texts, lists or dicts of such, under the same names.

    The state itself cannot be unpickled without importing transformers and torch, which takes a worker seconds and hundreds of MiB. Of
    `log_history`, which grows with the run, the last entry is kept.
    """
    if isinstance(state, PLAIN):
        return state
    fields: dict[str, Any] = getattr(state, "__dict__", {})
    if "log_history" in fields:
        fields = fields | {"log_history": fields["log_history"][-1:]}
    return SimpleNamespace(**{name: value for name, value in fields.items() if _is_plain(value)})


def _is_plain(value: Any) -> bool:
    match value:
        case list() | tuple():
            return all(map(_is_plain, value))
        case dict():
            return all(_is_plain(each) for pair in value.items() for each in pair)
        case _:
            return type(value) in PLAIN


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call of the function, with one completion."""

    value: Any
    """The return value, or a `Failure`."""
    logged: Sequence[tuple[str, str, Any]]
    """(`log_metric` or `log_extra`, name, value) in the order of the calls."""
    seconds: float


class RewardPool:
    """Workers for one reward function, which is called with one completion at a time.

    A call that raises fails for its completion alone. A worker that misses the deadline, exits or runs out of memory is replaced. So no
    completion can harm another, and a function must not expect the whole batch at once.

    The function is pickled by value where it is defined in a script or a notebook, and by its module's name otherwise.

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
                f"{func!r} cannot run in a worker process ({error}): set reward_workers=0, or make it picklable."
            ) from error
        self.timeout_s = timeout_s
        self.num_workers = num_workers
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(num_workers):
            self._idle.put(Worker(self._payload, int(memory_gib * 2**30)))
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="boresight-reward")

    def __call__(self, inputs: Mapping[str, Any], num_completions: int) -> list[Outcome]:
        """One outcome per completion.

        Args:
            inputs: keyword arguments of the function for the whole batch.
        """
        shared = {name: value for name, value in inputs.items() if name in PER_CALL}
        if "trainer_state" in shared:
            shared["trainer_state"] = light_state(shared["trainer_state"])
        shared |= dict.fromkeys(shared.keys() & {"log_metric", "log_extra"})  # the worker puts its own in their place
        each = [
            shared | {name: [values[index]] for name, values in inputs.items() if name not in PER_CALL}
            for index in range(num_completions)
        ]
        return list(self._threads.map(self._one, each))

    def _one(self, arguments: dict[str, Any]) -> Outcome:
        worker = self._idle.get()
        try:
            reply = worker.call(arguments, self.timeout_s)
        finally:
            self._idle.put(worker)
        if reply.kind == "timed_out":
            return Outcome(Failure(f"took longer than reward_timeout={self.timeout_s:g} s"), (), reply.seconds)
        if reply.kind != "ok":
            return Outcome(Failure(reply.message), (), reply.seconds)
        return Outcome(reply.value, reply.logged, reply.seconds)

    @property
    def payload(self) -> bytes:
        """The pickled function."""
        return self._payload

    def close(self) -> None:
        """End all workers."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().kill()
