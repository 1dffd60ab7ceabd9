"""The options of advantages, under TRL's names, and what may not be combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.options import OneOf, Source, option

SCALES = {"group": "group", "batch": "batch", "none": "none", "true": "group", "false": "none"}
"""What `scale_rewards` may be → what it means: TRL's booleans are group and none."""


@dataclass
class AdvantageOptions:
    """Options of `boresight.advantage`; a mixin of the trainer's configuration.

    Names and defaults are TRL 1.16's `GRPOConfig`; `advantage_baseline` is what TRL has a trainer of its own for, RLOO.
    """

    heading: ClassVar[str] = "advantage"

    scale_rewards: Annotated[str, OneOf(SCALES)] = option(
        "group",
        "What R - baseline is divided by: the standard deviation of the group, of the batch, or none (Dr. GRPO). True means group, False "
        "none.",
    )
    advantage_baseline: Annotated[Literal["mean", "leave_one_out"], Source("RLOO, arXiv 2402.14740: leave_one_out")] = (
        option(
            "mean",
            "What is subtracted from a reward: the group's mean, or leave_one_out, the mean of the others (RLOO).",
        )
    )
    multi_objective_aggregation: Annotated[
        Literal["sum_then_normalize", "normalize_then_sum"], Source("GDPO, arXiv 2601.05242: normalize_then_sum")
    ] = option(
        "sum_then_normalize",
        "sum_then_normalize: weighted sum of the rewards, then advantage. normalize_then_sum: each reward normalised in its group, "
        "weighted sum, then normalised over the batch (GDPO).",
    )
    reward_weights: list[float] | None = option(None, "Weight of each reward function; unset: 1 each.")

    def __post_init__(self) -> None:
        # TRL's booleans, and what a command line makes of them, become names here, so that nobody else need know of them.
        self.scale_rewards = SCALES.get(str(self.scale_rewards).lower(), self.scale_rewards)
        following = getattr(super(), "__post_init__", None)
        if following is not None:
            following()


def check_advantage(config: AdvantageOptions) -> None:
    """Refuse options that contradict one another; `check_options` has checked each by itself.

    Raises:
        ConfigError: options at odds; the message prints the fix.
    """
    if config.advantage_baseline == "leave_one_out" and config.scale_rewards == "group":
        raise ConfigError(
            "advantage_baseline='leave_one_out' (RLOO) does not divide by the group's spread: set scale_rewards='none'."
        )
    if config.multi_objective_aggregation == "normalize_then_sum":
        if config.scale_rewards != "group":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' scales by group and batch: leave scale_rewards at 'group'."
            )
        if config.advantage_baseline != "mean":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' subtracts the mean: leave advantage_baseline at 'mean'."
            )
