"""Where the time of a step goes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
        self._path = None if path is None else Path(path)
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
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"step": step} | {name: round(value, 6) for name, value in seconds.items()}) + "\n"
                )
        return {f"time/{name}": value for name, value in seconds.items()}

    def restart(self) -> None:
        """Forget the time since the last step ended: it was spent on something that is no part of a step."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._since = self._clock()

    def discard_after(self, step: int) -> None:
        """Remove the lines of later steps, before an interrupted run goes on from `step`."""
        if self._path is None or not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        aside = self._path.with_name(f".{self._path.name}")
        aside.write_text("".join(line for line in lines if _is_kept(line, step)), encoding="utf-8")
        aside.replace(self._path)

    def _charge(self) -> None:
        if self._synchronize is not None:
            self._synchronize()
        now = self._clock()
        self._seconds[self._open[-1]] = self._seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now


def _is_kept(line: str, step: int) -> bool:
    # A run that was killed may have left half a line at the end.
    return line.endswith("\n") and json.loads(line)["step"] <= step
