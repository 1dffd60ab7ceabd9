"""Wall-clock time of a step by phase."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boresight.report.jsonl import StepLines

PHASES: tuple[str, ...] = ("data", "sample", "reward", "logp", "update", "other")
"""The phases of a step; `other` is the time outside all of them. Runs with an engine or with tools have further ones."""


class Timeline:
    """Measures exclusive wall-clock seconds per phase: a nested phase's time is not counted in the outer one.

    Args:
        path: a file to which one JSON line per step is appended (RUN/timeline.jsonl); None writes none.
        synchronize: called at both ends of a phase to wait for an asynchronous device (`torch.cuda.synchronize`).
            The seconds become exact and the step slower; None does not wait.
        clock: returns seconds since any fixed moment.
        entered: called with the name of every phase that begins.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        synchronize: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        entered: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._entered = entered
        self.lines = StepLines(path)
        self._synchronize = synchronize
        self._clock = clock
        self._open = ["other"]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as phase `name`, one of `PHASES` or any other."""
        self._charge()
        self._open.append(name)
        self._entered(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def end_step(self, step: int) -> dict[str, float]:
        """Seconds of every phase since the last step ended, as metrics (``time/sample_s`` …); then start the next step."""
        self._charge()
        seconds = {f"{name}_s": value for name, value in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.lines.add(step, {name: round(value, 6) for name, value in seconds.items()})
        return {f"time/{name}": value for name, value in seconds.items()}

    def discard_after(self, step: int) -> int:
        """Remove the lines of later steps, before an interrupted run resumes at `step`; returns how many."""
        return self.lines.discard_after(step)

    def _charge(self) -> None:
        if self._synchronize is not None:
            self._synchronize()
        now = self._clock()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
