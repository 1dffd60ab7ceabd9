"""The seconds of each optimizer step."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

WARM_UP = 2
"""Steps that are not counted: a rollout that is sampled ahead begins with one that is not, and caches are empty."""


class StepClock(TrainerCallback):
    """Notes the end of every step."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> list[tuple[float, float]]:
        """Of each counted step, from the end of the one before: on the wall, and of this process's computing."""
        between = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(self._ends)]
        return between[WARM_UP - 1 :]
