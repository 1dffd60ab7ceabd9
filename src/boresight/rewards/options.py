"""The options of the rewards room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.options import Needs, Range, option

GOLD_TEMPLATE = "<think></think><answer>{solution}</answer>"


@dataclass
class RewardOptions:
    """How reward functions are called, and tried before training. None of these options is in TRL."""

    heading: ClassVar[str] = "rewards"

    gold_check: Literal["warn", "error", "off"] = option(
        "warn",
        "Before training, have answer rewards mark the gold answers of up to 256 rows: 'warn' names rows without full marks, 'error' stops "
        "there, 'off' does not look.",
    )
    gold_template: Annotated[str, Needs("gold_check", ("warn", "error"))] = option(
        GOLD_TEMPLATE, "The completion that the gold check puts {solution} into."
    )
    reward_workers: Annotated[int, Range(at_least=0)] = option(
        0,
        "Processes for each sync reward function, which then sees one completion at a time and can hang or crash without harm to others. "
        "0: called in the training process on the whole batch, as in TRL.",
    )
    reward_timeout: Annotated[float, Range(above=0)] = option(
        60.0, "Seconds that a reward worker has for a completion, and an async reward function for a batch."
    )
    max_failed_rate: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.5, "Share of completions on which a reward function may fail before the run stops."
    )
