"""The run folder at the start of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class CleanFolder(TrainerCallback):
    """Before the first step, removes what an earlier process left of later steps; an interrupted run goes on from its checkpoint.

    Args:
        discard_after: removes it, and returns how much went. Called on the first rank alone.
        say: tells the user.
        wait: holds every rank until all have come here.
    """

    def __init__(
        self, discard_after: Callable[[int], int], say: Callable[[str], None], wait: Callable[[], None]
    ) -> None:
        self._discard_after = discard_after
        self._say = say
        self._wait = wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self._discard_after(state.global_step):
            self._say(f"what an earlier run left of steps after {state.global_step} in {args.output_dir} is removed.")
        self._wait()
