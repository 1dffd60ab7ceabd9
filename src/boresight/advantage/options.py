"""The options of advantages, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AdvantageConfig:
    """Options of `boresight.advantage`; a mixin of the trainer's config. See `check_advantage`.

    Names and defaults are TRL 1.16's `GRPOConfig`; `advantage_baseline` is what TRL has a trainer of its own for, RLOO.
    """

    scale_rewards: str = field(
        default="group",
        metadata={
            "help": "What R - baseline is divided by: the standard deviation of the group, of the batch, or none (Dr. GRPO). "
            "True means group, False none."
        },
    )
    advantage_baseline: str = field(
        default="mean",
        metadata={
            "help": "What is subtracted from a reward: the group's mean, or leave_one_out, the mean of the others (RLOO)."
        },
    )
    multi_objective_aggregation: str = field(
        default="sum_then_normalize",
        metadata={
            "help": "sum_then_normalize: weighted sum of the rewards, then advantage. normalize_then_sum: each reward normalised in "
            "its group, weighted sum, then normalised over the batch (GDPO)."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward function; unset: 1 each."}
    )
