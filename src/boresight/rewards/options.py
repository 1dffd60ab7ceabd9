"""The options of the rewards room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.options import Needs, Range, option

GOLD_TEMPLATE = "<think>The reasoning.</think><answer>{solution}</answer>"
"""A completion that the built-in rewards give full marks, with the gold in it."""


@dataclass
class RewardOptions:
    """How reward functions are called, and tested before training. None of these options is in TRL."""

    heading: ClassVar[str] = "rewards"

    gold_check: Literal["warn", "error", "off"] = option(
        "warn",
        "Before training, score the gold answers of up to 256 rows (of a stream, the first 64) with the answer rewards, as they are and "
        "written in other ways: 'warn' "
        "names rows below the full reward, 'error' stops the run, 'off' skips the check.",
    )
    gold_template: Annotated[str, Needs("gold_check", ("warn", "error"))] = option(
        GOLD_TEMPLATE, "Template of the completion that the gold check scores; {solution} is the gold answer."
    )
    reward_workers: Annotated[int, Range(at_least=0)] = option(
        0,
        "Worker processes for each sync reward function, which then gets one completion per call; a hang or crash affects only that "
        "completion. 0: it runs in the training process on the whole batch, as in TRL.",
    )
    reward_timeout: Annotated[float, Range(above=0)] = option(
        60.0,
        "Time limit in seconds of a reward worker for one completion, and of an async reward function for a batch.",
    )
    max_failed_rate: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.5, "Largest share of completions on which a reward function may fail; above it, the run stops."
    )
