"""One side in a process of its own, so that neither side's memory, caches or patches touch the other's."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, Protocol

import torch
from cases import Case
from ideal import Costs, unit_costs
from measure import counted_work, peak_bytes, seconds
from torch import Tensor


class Session:
    """What a worker can be asked for."""

    def __init__(self, side: str, folder: Path, scratch: Path, *, measures: bool = True) -> None:
        """`measures`: whether figures will be believed, so that garbage is collected before each run."""
        self.folder = folder
        self._collect = gc.collect if measures else int
        if side == "trl":
            from trl_side import TRLSide as Side
        elif side == "vllm":
            from vllm_side import VLLMSide as Side
        else:
            from ours_side import OurSide as Side
        self.side = Side(folder, scratch)

    def prepare(self, case: Case) -> None:
        self.release()
        self.side.prepare(case)

    def release(self) -> None:
        """Let go of the case before."""
        self.side.release()
        self._collect()

    def seconds(self) -> float:
        """Of one run."""
        self.side.reset()
        self._collect()
        return seconds(self.side.run)

    def account(self) -> dict[str, int]:
        """Work and memory of one run. Room for gradients is made beforehand: it is the same on both sides."""
        self.side.reset()
        for parameter in self.side.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        self._collect()
        with counted_work(self.side.models()) as counts:
            peak = peak_bytes(self.side.run)
        return {"encodes": counts["encodes"], "tokens": counts["tokens"], "peak_bytes": peak}

    def logp(self) -> Tensor | None:
        return self.side.logp()

    def costs(self, case: Case, repeats: int) -> Costs:
        return unit_costs(case, self.folder, repeats)


def serve(side: str, folder: Path, scratch: Path, threads: int, orders: Connection) -> None:
    """Do what is asked for until the other end hangs up."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    _silence_profiler()
    session = Session(side, folder, scratch)
    orders.send(None)
    while True:
        try:
            name, args = orders.recv()
        except EOFError:
            return
        try:
            orders.send(getattr(session, name)(*args))
        except Exception:
            orders.send(Failure(traceback.format_exc()))


def _silence_profiler() -> None:
    """torch's profiler writes to standard error whenever it starts; Python's own messages keep going there."""
    kept = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.stderr = os.fdopen(kept, "w", buffering=1)


class Failure:
    """An exception on its way to the other process."""

    def __init__(self, text: str) -> None:
        self.text = text


class Worker(Protocol):
    """A side that can be asked for work."""

    def ask(self, name: str, *args: Any) -> Any:
        """What `Session.<name>(*args)` returns."""

    def close(self) -> None: ...


def start_workers(
    sides: Iterable[str], folder: Path, scratch: Path, threads: int, *, apart: bool = True
) -> list[Worker]:
    """A worker for each side.

    Args:
        sides: `"trl"`, `"ours"` and `"vllm"`.
        folder: the model's.
        scratch: where trainers may write.
        threads: of torch's operators.
        apart: False: all in this process. That starts faster, and shows that everything runs; its figures mean nothing.
    """
    if apart:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        return [WorkerProcess(context, side, folder, scratch / side, threads) for side in sides]
    return [WorkerHere(side, folder, scratch / side) for side in sides]


class WorkerHere:
    """A worker in this process."""

    def __init__(self, side: str, folder: Path, scratch: Path) -> None:
        self._session = Session(side, folder, scratch, measures=False)

    def ask(self, name: str, *args: Any) -> Any:
        return getattr(self._session, name)(*args)

    def close(self) -> None:
        self._session.release()


class WorkerProcess:
    """The near end of a worker's process."""

    def __init__(self, context: SpawnContext, side: str, folder: Path, scratch: Path, threads: int) -> None:
        self.side = side
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(side, folder, scratch, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def ask(self, name: str, *args: Any) -> Any:
        self._orders.send((name, args))
        return self._answer()

    def _answer(self) -> Any:
        answer = self._orders.recv()
        if isinstance(answer, Failure):
            raise RuntimeError(f"{self.side} failed:\n{answer.text}")
        return answer

    def close(self) -> None:
        self._orders.close()
        self._process.join(timeout=10)
