"""Where the time of a step goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from boresight.report.jsonl import StepLines

PHASES: tuple[str, ...] = ("data", "sample", "reward", "logp", "update", "other")
"""What a step spends its time on; `other` is all that no phase claims."""


class Timeline:
    """Measures exclusive wall-clock seconds per phase: inside a nested phase, the outer one rests.

    Args:
        path: a file that gets one JSON line per step (RUN/timeline.jsonl); None keeps no file.
        synchronize: called at both ends of a phase, to wait for a device that works on its own
            (`torch.cuda.synchronize`). It makes the seconds true and the step slower; None does not wait.
        clock: seconds since any fixed moment.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        synchronize: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.lines = StepLines(path)
        self._synchronize = synchronize
        self._clock = clock
        self._open = ["other"]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the time inside to `name`, one of `PHASES` or a name of one's own."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def end_step(self, step: int) -> dict[str, float]:
        """Seconds of every phase since the last step ended, as metrics (``time/sample_s`` …), and start anew."""
        self._charge()
        seconds = {f"{name}_s": value for name, value in self._seconds.items()}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.lines.add(step, {name: round(value, 6) for name, value in seconds.items()})
        return {f"time/{name}": value for name, value in seconds.items()}

    def discard_after(self, step: int) -> int:
        """Remove the lines of later steps, before an interrupted run goes on from `step`; how many went."""
        return self.lines.discard_after(step)

    def _charge(self) -> None:
        if self._synchronize is not None:
            self._synchronize()
        now = self._clock()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
