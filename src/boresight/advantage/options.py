"""The options of advantages, under TRL's names, and the combinations that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.options import OneOf, Source, option

SCALES = {"group": "group", "batch": "batch", "none": "none", "true": "group", "false": "none"}
"""Accepted value of `scale_rewards` → its meaning. TRL's booleans mean group and none."""


@dataclass
class AdvantageOptions:
    """Options of `boresight.advantage`; a mixin of the trainer's configuration.

    Names and defaults are those of `GRPOConfig` in TRL 1.16, except `advantage_baseline`: TRL has a separate trainer for RLOO.
    """

    heading: ClassVar[str] = "advantage"

    scale_rewards: Annotated[str, OneOf(SCALES)] = option(
        "group",
        "Divisor of R - baseline: the standard deviation of the group, of the batch, or none (Dr. GRPO). True means group, False means "
        "none.",
    )
    advantage_baseline: Annotated[Literal["mean", "leave_one_out"], Source("RLOO, arXiv 2402.14740: leave_one_out")] = (
        option(
            "mean",
            "Baseline subtracted from a reward: the group's mean, or leave_one_out, the mean of the others (RLOO).",
        )
    )
    multi_objective_aggregation: Annotated[
        Literal["sum_then_normalize", "normalize_then_sum"], Source("GDPO, arXiv 2601.05242: normalize_then_sum")
    ] = option(
        "sum_then_normalize",
        "sum_then_normalize: sum the weighted rewards, then normalise. normalize_then_sum: normalise each reward within its group, take "
        "the weighted sum, then normalise over the batch (GDPO).",
    )
    reward_weights: list[float] | None = option(None, "Weight of each reward function; unset: 1 each.")
    reward_clip_range: Annotated[list[float] | None, Source("TRL's RLOOTrainer")] = option(
        None, "Least and greatest value of a completion's weighted reward; other values are clipped to it.", metavar="X"
    )
    normalize_advantages: Annotated[bool, Source("TRL's RLOOTrainer")] = option(
        False, "Normalise advantages over the batch: subtract their mean and divide by their standard deviation."
    )

    def __post_init__(self) -> None:
        # Convert TRL's booleans, also as strings from a command line, to names, so that other code sees names only.
        self.scale_rewards = SCALES.get(str(self.scale_rewards).lower(), self.scale_rewards)
        following = getattr(super(), "__post_init__", None)
        if following is not None:
            following()


def check_advantage(config: AdvantageOptions) -> None:
    """Refuse options that contradict one another; `check_options` has checked each one separately.

    Raises:
        ConfigError: two options conflict; the message prints the fix.
    """
    if config.advantage_baseline == "leave_one_out" and config.scale_rewards == "group":
        raise ConfigError(
            "advantage_baseline='leave_one_out' (RLOO) does not divide by the group's spread: set scale_rewards='none'."
        )
    if config.reward_clip_range is not None:
        bounds = list(config.reward_clip_range)
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ConfigError(f"reward_clip_range={config.reward_clip_range!r}: give two numbers, the smaller first.")
    if config.normalize_advantages and config.scale_rewards == "batch":
        raise ConfigError("normalize_advantages=True divides by the batch's spread already: set scale_rewards='none'.")
    if config.multi_objective_aggregation == "normalize_then_sum":
        if config.reward_clip_range is not None or config.normalize_advantages:
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' normalises each reward and the batch: drop reward_clip_range and "
                "normalize_advantages."
            )
        if config.scale_rewards != "group":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' scales by group and batch: leave scale_rewards at 'group'."
            )
        if config.advantage_baseline != "mean":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' subtracts the mean: leave advantage_baseline at 'mean'."
            )
