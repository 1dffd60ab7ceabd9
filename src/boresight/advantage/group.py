"""Advantages: the reward of a completion relative to its group.

There are two steps. `compared` weights the rewards and compares each completion with its own group only. It runs once for every sampled
group and does not depend on other groups. `advantage` then applies batch statistics over the groups to learn from, if the options
request them. Call both on the groups of all ranks.

A reward of NaN is *unscored*: it enters no mean, and its advantage is 0. A group with no spread, or with fewer than two scored
completions, has advantages of exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boresight.advantage.options import AdvantageOptions
from boresight.errors import ConfigError, RewardError
from boresight.types import PerSequence

Table = Float[Tensor, "B R"]
Failed = Bool[Tensor, "B"]
GroupIndex = Int[Tensor, "B"]
PerGroup = Float[Tensor, "G"]

EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The completions of some groups, each compared with the others of its group."""

    group: GroupIndex
    """[B] group number of each completion, from 0; completions of a group need not be adjacent."""
    reward: PerSequence
    """[B] the weighted sum of its rewards; NaN where unscored."""
    relative: Float[Tensor, "B"]
    """[B] float64: its reward relative to its group; NaN where unscored, exactly 0 in a group without spread."""
    mean: PerGroup
    """[G] mean reward of the scored completions; NaN if none is scored."""
    std: PerGroup
    """[G] unbiased standard deviation of the scored completions; NaN if fewer than two are scored."""
    zero_spread: Bool[Tensor, "G"]
    """[G] true where every advantage of the group is exactly 0, so that the group gives no learning signal."""

    def __add__(self, later: Comparison) -> Comparison:
        """These groups followed by later ones."""
        return Comparison(
            torch.cat([self.group, later.group + len(self.zero_spread)]),
            torch.cat([self.reward, later.reward]),
            torch.cat([self.relative, later.relative]),
            torch.cat([self.mean, later.mean]),
            torch.cat([self.std, later.std]),
            torch.cat([self.zero_spread, later.zero_spread]),
        )

    def of(self, groups: Sequence[int]) -> Comparison:
        """The given groups in the given order, renumbered from 0; the order of completions within a group is kept."""
        places = [(self.group == number).nonzero().flatten() for number in groups]
        own, chosen = torch.cat(places), torch.tensor(list(groups), device=self.group.device)
        sizes = torch.tensor([len(place) for place in places], device=self.group.device)
        number = torch.arange(len(groups), device=self.group.device).repeat_interleave(sizes)
        return Comparison(
            number, self.reward[own], self.relative[own], self.mean[chosen], self.std[chosen], self.zero_spread[chosen]
        )


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
    """Unbiased standard deviation over the batch, without NaN; 0 if fewer than two values remain."""
    scored = value[~value.isnan()].double()
    return scored.std() if len(scored) > 1 else scored.new_zeros(())


def combine_rewards(table: Table, weights: Sequence[float] | None, failed: Failed | None = None) -> PerSequence:
    """The weighted sum of each completion's rewards.

    Args:
        table: one column per reward function; NaN where a reward does not apply, and then only the others are summed.
        weights: one per column; None: 1 each.
        failed: true where a reward function raised or ran out of time: the whole completion is unscored.

    Returns:
        The sums; NaN where a completion failed or no reward applies.

    Raises:
        RewardError: a reward is infinite.
        ConfigError: the number of weights is not the number of columns.
    """
    infinite = table.isinf().nonzero()
    if len(infinite):
        sample, column = (int(place) for place in infinite[0])
        raise RewardError(
            f"Completion {sample}: reward function {column} returned {table[sample, column].item()}. Return a finite number, or None "
            "where the reward does not apply."
        )
    scale = table.new_ones(table.shape[1]) if weights is None else table.new_tensor(list(weights))
    if len(scale) != table.shape[1]:
        raise ConfigError(
            f"reward_weights has {len(scale)} numbers for {table.shape[1]} reward functions: give one for each."
        )
    unscored = table.isnan().all(-1)
    if failed is not None:
        unscored = unscored | failed
    return (table.nan_to_num(nan=0.0) * scale).sum(-1).masked_fill(unscored, torch.nan)


def _normalised(
    rewards: PerSequence, group: GroupIndex, spread: _Spread, config: AdvantageOptions
) -> Float[Tensor, "B"]:
    """Rewards minus their group's baseline, divided by its spread if configured: float64, NaN where unscored."""
    value = rewards.double() - spread.mean[group]
    if config.advantage_baseline == "leave_one_out":
        count = spread.num_scored[group]
        value = value * count / (count - 1)
    if config.scale_rewards == "group":
        value = value / (spread.std[group] + EPSILON)
    return value.masked_fill(spread.is_flat[group], 0.0).masked_fill(rewards.isnan(), torch.nan)


def compared(
    table: Table,
    group: GroupIndex,
    config: AdvantageOptions,
    failed: Failed | None = None,
    penalty: PerSequence | None = None,
) -> Comparison:
    r"""Each completion's weighted reward, and its reward relative to its group.

    $(R_i - \mathrm{mean}_G)/(\mathrm{std}_G + 10^{-4})$, with an unbiased std. The division is done only for `scale_rewards="group"`. For
    `advantage_baseline="leave_one_out"` the mean is that of the other completions. For
    `multi_objective_aggregation="normalize_then_sum"` each reward function is normalised separately before the weighted sum, so that a
    reward of large spread does not dominate one of small spread.

    Args:
        table: [B, R] one row per completion, one column per reward function; NaN where a reward does not apply.
        group: [B] group number of each completion, from 0; completions of a group need not be adjacent.
        failed: [B] true where a reward function raised or ran out of time.
        penalty: [B] is subtracted from each completion's reward after `reward_clip_range`; it is not part of `Comparison.reward`.

    Raises:
        RewardError: a reward is infinite.
        ConfigError: the number of weights is not the number of reward functions.

    Reference:
        GRPO, arXiv 2402.03300, § 4.1.2; no division: Dr. GRPO, arXiv 2503.20783; leave one out: RLOO, arXiv 2402.14740; each reward
        separately: GDPO, arXiv 2601.05242.
    """
    num_groups = int(group.max()) + 1 if len(group) else 0
    reward = combine_rewards(table, config.reward_weights, failed)
    value = reward if config.reward_clip_range is None else reward.clamp(*config.reward_clip_range)
    value = value if penalty is None else value - penalty
    spread = _spread(value, group, num_groups)
    if config.multi_objective_aggregation == "normalize_then_sum":
        relative = _decoupled(table, reward.isnan(), group, num_groups, config)
        zero_spread = torch.ones(num_groups, dtype=torch.bool, device=group.device)
        zero_spread[group[relative.nan_to_num(nan=0.0) != 0]] = False
    else:
        relative, zero_spread = _normalised(value, group, spread, config), spread.is_flat
    return Comparison(group, reward, relative, spread.mean.to(table.dtype), spread.std.to(table.dtype), zero_spread)


def _decoupled(
    table: Table, unscored: Bool[Tensor, "B"], group: GroupIndex, num_groups: int, config: AdvantageOptions
) -> Float[Tensor, "B"]:
    """The weighted sum of separately normalised rewards."""
    columns = [column.masked_fill(unscored, torch.nan) for column in table.unbind(-1)]
    normalised = [_normalised(column, group, _spread(column, group, num_groups), config) for column in columns]
    together = torch.stack(normalised, dim=-1).nan_to_num(nan=0.0).to(table.dtype)
    return combine_rewards(together, config.reward_weights, unscored).double()


def advantage(comparison: Comparison, config: AdvantageOptions) -> PerSequence:
    r"""[B] Advantage of each completion of the groups to learn from; 0 where unscored.

    The result of `compared` is divided by the standard deviation of all rewards for `scale_rewards="batch"`. For
    `multi_objective_aggregation="normalize_then_sum"` it is normalised over the batch: $(A - \mathrm{mean})/(\mathrm{std} + 10^{-4})$.

    Args:
        comparison: the groups of the whole batch, over all ranks.

    Reference:
        By the batch: arXiv 2508.08221; GDPO, arXiv 2601.05242. TRL: ``multi_objective_aggregation="normalize_then_sum"``.
    """
    value = comparison.relative
    if config.multi_objective_aggregation == "normalize_then_sum":
        value = (value - value.nanmean()) / (_batch_std(value) + EPSILON)
        # The mean is 0 up to rounding, and the rounding error must not reach a group without spread.
        value = value.masked_fill(comparison.zero_spread[comparison.group], 0.0)
    elif config.scale_rewards == "batch":
        value = value / (_batch_std(comparison.reward) + EPSILON)
    if config.normalize_advantages:
        value = (value - value.nanmean()) / (_batch_std(value) + EPSILON)
    return value.masked_fill(comparison.reward.isnan(), 0.0).to(comparison.reward.dtype)
