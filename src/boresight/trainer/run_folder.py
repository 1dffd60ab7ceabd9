"""The run folder at the start of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class CleanFolder(TrainerCallback):
    """Before the first step, removes an earlier process's output about later steps, because a run resumes from its checkpoint.

    Args:
        discard_after: removes it, and returns the number of removed lines and files. Called on the first rank only.
        say: prints a message to the user.
        wait: a barrier over all ranks.
    """

    def __init__(
        self, discard_after: Callable[[int], int], say: Callable[[str], None], wait: Callable[[], None]
    ) -> None:
        self._discard_after = discard_after
        self._say = say
        self._wait = wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero and self._discard_after(state.global_step):
            self._say(
                f"removed the output of an earlier run about steps after {state.global_step} from {args.output_dir}."
            )
        self._wait()
