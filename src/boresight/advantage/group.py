"""Advantages: what a completion earned beyond the others of its group.

Call these on the rewards of the whole generation batch, gathered over all ranks. A reward of NaN is *unscored*: it
takes no part in any mean, and its advantage is 0. A group with no spread, or with fewer than two scored completions,
has advantages of exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boresight.advantage.options import AdvantageConfig
from boresight.errors import ConfigError, RewardError, nearest
from boresight.types import PerSequence

Table = Float[Tensor, "B R"]
GroupIndex = Int[Tensor, "B"]
PerGroup = Float[Tensor, "G"]

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""

SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
BASELINES = ("mean", "leave_one_out")


def scale_of(config: AdvantageConfig) -> str:
    """`scale_rewards` with True and False (a command line's "true" and "false" too) read as group and none."""
    return {"true": "group", "false": "none"}.get(str(config.scale_rewards).lower(), str(config.scale_rewards))


def check_advantage(config: AdvantageConfig, num_rewards: int | None = None) -> None:
    """Refuse contradictions before anything is trained.

    Raises:
        ConfigError: an unknown name, weights that do not match the reward functions, or options at odds.
    """
    choices = {"scale_rewards": SCALES, "advantage_baseline": BASELINES, "multi_objective_aggregation": AGGREGATIONS}
    for option, known in choices.items():
        value = scale_of(config) if option == "scale_rewards" else getattr(config, option)
        if value not in known:
            raise ConfigError(f"{option}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")
    if config.advantage_baseline == "leave_one_out" and scale_of(config) == "group":
        raise ConfigError(
            "advantage_baseline='leave_one_out' (RLOO) does not divide by the group's spread: set scale_rewards='none'."
        )
    if config.multi_objective_aggregation == "normalize_then_sum":
        if scale_of(config) != "group":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' scales by group and batch: leave scale_rewards at 'group'."
            )
        if config.advantage_baseline != "mean":
            raise ConfigError(
                "multi_objective_aggregation='normalize_then_sum' subtracts the mean: leave advantage_baseline at 'mean'."
            )
    if num_rewards is not None and config.reward_weights is not None and len(config.reward_weights) != num_rewards:
        raise ConfigError(
            f"reward_weights has {len(config.reward_weights)} numbers for {num_rewards} reward functions: give one each."
        )


@dataclass(frozen=True, slots=True)
class Advantage:
    """What the policy learns from, and the rewards behind it."""

    values: PerSequence
    """[B] advantage; 0 where unscored."""
    rewards: PerSequence
    """[B] the weighted sum of rewards; NaN where unscored."""
    mean: PerGroup
    """[G] mean reward of the scored completions; NaN where none is."""
    std: PerGroup
    """[G] unbiased standard deviation of the scored completions; NaN where fewer than two are."""
    zero_spread: Bool[Tensor, "G"]
    """[G] true where every advantage of the group is exactly 0, so that it teaches nothing."""


@dataclass(frozen=True, slots=True)
class _Spread:
    """Statistics of scored rewards per group, in float64."""

    num_scored: PerGroup
    mean: PerGroup
    std: PerGroup
    is_flat: Bool[Tensor, "G"]


def _spread(rewards: PerSequence, group: GroupIndex, num_groups: int) -> _Spread:
    scored = ~rewards.isnan()
    value, index = rewards[scored].double(), group[scored]
    zeros = value.new_zeros(num_groups)
    count = zeros.index_add(0, index, torch.ones_like(value))
    mean = zeros.index_add(0, index, value) / count
    square = zeros.index_add(0, index, (value - mean[index]).square())
    std = torch.where(count > 1, (square / (count - 1)).sqrt(), torch.nan)
    least = zeros.scatter_reduce(0, index, value, "amin", include_self=False)
    greatest = zeros.scatter_reduce(0, index, value, "amax", include_self=False)
    return _Spread(count, mean, std, (count < 2) | (least == greatest))


def _batch_std(value: PerSequence) -> Float[Tensor, ""]:
    """Unbiased standard deviation over the batch of what is not NaN; 0 where fewer than two are not."""
    scored = value[~value.isnan()].double()
    return scored.std() if len(scored) > 1 else scored.new_zeros(())


def combine_rewards(
    table: Table, weights: Sequence[float] | None, failed: Bool[Tensor, "B"] | None = None
) -> PerSequence:
    """The weighted sum of each completion's rewards.

    Args:
        table: one column per reward function; NaN where it does not apply, and then the others are summed.
        weights: one per column; None: 1 each.
        failed: true where a reward function raised or ran out of time: the whole completion is unscored.

    Returns:
        The sums; NaN where a completion failed or no reward applies.

    Raises:
        RewardError: a reward is infinite.
        ConfigError: not one weight per column.
    """
    infinite = table.isinf().nonzero()
    if len(infinite):
        sample, column = infinite[0].tolist()
        raise RewardError(
            f"Completion {sample}: reward function {column} returned {table[sample, column].item()}. Return a finite number, or None "
            "where the reward does not apply."
        )
    scale = table.new_ones(table.shape[1]) if weights is None else table.new_tensor(list(weights))
    if len(scale) != table.shape[1]:
        raise ConfigError(
            f"reward_weights has {len(scale)} numbers for {table.shape[1]} reward functions: give one each."
        )
    unscored = table.isnan().all(-1)
    if failed is not None:
        unscored = unscored | failed
    return (table.nan_to_num(nan=0.0) * scale).sum(-1).masked_fill(unscored, torch.nan)


def group_advantage(rewards: PerSequence, group: GroupIndex, config: AdvantageConfig) -> Advantage:
    r"""Advantage of each completion within its group.

    $A_i = (R_i - \mathrm{mean}_G)/(\mathrm{std}_G + 10^{-4})$, with an unbiased std; the std of the batch, or no
    division, by `scale_rewards`; for `advantage_baseline="leave_one_out"` the mean is that of the other completions.

    Args:
        rewards: NaN where unscored.
        group: of each completion, from 0; completions of a group need not be neighbours.

    Reference:
        GRPO, arXiv 2402.03300, § 4.1.2; batch: arXiv 2508.08221; none: Dr. GRPO, arXiv 2503.20783; leave one out: RLOO,
        arXiv 2402.14740.
    """
    num_groups = int(group.max()) + 1 if len(group) else 0
    spread = _spread(rewards, group, num_groups)
    count = spread.num_scored[group]
    value = rewards.double() - spread.mean[group]
    if config.advantage_baseline == "leave_one_out":
        value = value * count / (count - 1)
    scale = scale_of(config)
    if scale == "group":
        value = value / (spread.std[group] + EPSILON)
    elif scale == "batch":
        value = value / (_batch_std(rewards) + EPSILON)
    value = value.masked_fill(rewards.isnan() | spread.is_flat[group], 0.0)
    return Advantage(
        value.to(rewards.dtype), rewards, spread.mean.to(rewards.dtype), spread.std.to(rewards.dtype), spread.is_flat
    )


def decoupled_advantage(
    table: Table, weights: Sequence[float] | None, group: GroupIndex, failed: Bool[Tensor, "B"] | None = None
) -> Advantage:
    """GDPO: each reward is normalised in its group, the weighted sum of these over the batch.

    So a reward of small spread is not drowned by one of large spread.

    Args, Returns, Raises: as `combine_rewards` and `group_advantage`.

    Reference:
        GDPO, arXiv 2601.05242. TRL: ``multi_objective_aggregation="normalize_then_sum"``.
    """
    rewards = combine_rewards(table, weights, failed)
    unscored = rewards.isnan()
    by_group = AdvantageConfig(scale_rewards="group")
    columns = [column.masked_fill(unscored, torch.nan) for column in table.unbind(-1)]
    normalised = torch.stack([group_advantage(column, group, by_group).values for column in columns], dim=-1)
    combined = combine_rewards(normalised, weights, unscored).double()

    num_groups = int(group.max()) + 1 if len(group) else 0
    moved = torch.zeros(num_groups, dtype=torch.bool, device=group.device)
    moved[group[combined.nan_to_num(nan=0.0) != 0]] = True
    value = (combined - combined.nanmean()) / (_batch_std(combined) + EPSILON)
    value = value.masked_fill(unscored | ~moved[group], 0.0)
    spread = _spread(rewards, group, num_groups)
    return Advantage(value.to(table.dtype), rewards, spread.mean.to(table.dtype), spread.std.to(table.dtype), ~moved)


def advantage(
    table: Table, group: GroupIndex, config: AdvantageConfig, failed: Bool[Tensor, "B"] | None = None
) -> Advantage:
    """From the reward table to advantages, as `config` says.

    Args:
        table: one row per completion, one column per reward function; NaN where a reward does not apply.
        group: of each completion, from 0.
        failed: true where a reward function raised or ran out of time.

    Raises:
        RewardError: a reward is infinite.
        ConfigError: not one weight per reward function.
    """
    if config.multi_objective_aggregation == "normalize_then_sum":
        return decoupled_advantage(table, config.reward_weights, group, failed)
    return group_advantage(combine_rewards(table, config.reward_weights, failed), group, config)
