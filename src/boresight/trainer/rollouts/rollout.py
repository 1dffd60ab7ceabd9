"""One rollout over all ranks: its groups, their rewards, and which rank learns from which group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate.utils import gather_object
from torch import Tensor

from boresight.advantage.group import Comparison, advantage, compared
from boresight.advantage.options import AdvantageOptions
from boresight.report.metrics import MeanMetrics
from boresight.rewards.table import RewardTable
from boresight.trainer.rollouts.answers import answer_shares
from boresight.trainer.rollouts.scored import Observed, group_from_state, group_state
from boresight.types import Group, PerSequence, Prompt

Place = tuple[int, int]
"""Where a group was sampled: the rank, and the index among that rank's groups of the rollout."""

GroupScore = tuple[Tensor, Tensor, Tensor]
"""[K, R] rewards of a group's completions, [K] true where a function failed, and [K] what is subtracted from their rewards."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """This rank's sampled groups, and the comparison of the completions of all ranks' groups."""

    groups: list[Group]
    """This rank's groups."""
    table: RewardTable
    """The rewards of their completions."""
    comparison: Comparison
    """The comparison of the completions of all ranks, computed once."""
    sizes: list[list[int]]
    """For every rank, the number of completions in each of its groups."""
    numbers: Mapping[Place, int]
    """Where a group was sampled → its number in `comparison`."""

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        table: RewardTable,
        config: AdvantageOptions,
        penalty: Sequence[Tensor] | None = None,
    ) -> Rollout:
        """Gather the rewards of all ranks' groups. Ranks may have different numbers of groups.

        Args:
            penalty: [K] for each group: what is subtracted from its completions' rewards.
        """
        sizes = [len(group) for group in groups]
        penalty = [torch.zeros(size) for size in sizes] if penalty is None else penalty
        own = list(zip(table.values.split(sizes), table.failed.split(sizes), penalty, strict=True))
        return cls.gathered(groups, table, gather_object([own]), config)

    @classmethod
    def gathered(
        cls,
        groups: Sequence[Group],
        table: RewardTable,
        scores: Sequence[Sequence[GroupScore]],
        config: AdvantageOptions,
    ) -> Rollout:
        """A rollout from this rank's groups and the scores of every rank's groups."""
        sizes = [[len(values) for values, *_ in own] for own in scores]
        places = [(rank, place) for rank, own in enumerate(scores) for place in range(len(own))]
        values, failed, penalty = (
            torch.cat(parts) for parts in zip(*(each for own in scores for each in own), strict=True)
        )
        group = torch.arange(len(places)).repeat_interleave(torch.tensor([size for own in sizes for size in own]))
        comparison = compared(values, group, config, failed, penalty)
        return cls(list(groups), table, comparison, sizes, {place: number for number, place in enumerate(places)})

    def __add__(self, later: Rollout) -> Rollout:
        shifted = {
            (rank, len(self.sizes[rank]) + place): len(self.numbers) + number
            for (rank, place), number in later.numbers.items()
        }
        return Rollout(
            self.groups + later.groups,
            self.table + later.table,
            self.comparison + later.comparison,
            [own + more for own, more in zip(self.sizes, later.sizes, strict=True)],
            {**self.numbers, **shifted},
        )

    @property
    def ranks(self) -> list[list[Place]]:
        """Every rank's groups."""
        return [[(rank, place) for place in range(len(own))] for rank, own in enumerate(self.sizes)]

    def compared(self, places: Sequence[Place]) -> Comparison:
        """The completions of some groups, in the order of `places`, each compared with its group."""
        return self.comparison.of([self.numbers[place] for place in places])

    def advantages(self, places: Sequence[Place], config: AdvantageOptions) -> dict[Place, Tensor]:
        """[K] advantages of each of these groups. Only these groups enter the batch statistics."""
        values = advantage(self.compared(places), config)
        sizes = [self.sizes[rank][place] for rank, place in places]
        return dict(zip(places, values.split(sizes), strict=True))

    def note(self, metrics: MeanMetrics) -> None:
        """Log reward and length metrics of all sampled completions under TRL's names."""
        table, found = self.table, self.comparison
        metrics.mean("reward", found.reward)
        metrics.mean("reward_std", _std(found.reward, 0.0))
        metrics.mean("frac_reward_zero_std", found.zero_spread.float())
        metrics.mean("frac_unscored", (~table.scored).float())
        for name, values in table.by_name.items():
            metrics.mean(f"rewards/{name}/mean", values)
            metrics.mean(f"rewards/{name}/std", _std(values, torch.nan))
            metrics.mean(f"rewards/{name}/not_applied", (values.isnan() & ~table.failed).float())
        for name, values in table.metrics.items():
            metrics.mean(name, torch.tensor(values))
        completions = [completion for group in self.groups for completion in group.completions]
        lengths = torch.tensor([float(completion.mask.sum()) for completion in completions])
        truncated = torch.tensor([completion.truncated for completion in completions])
        metrics.mean("completions/clipped_ratio", truncated.float())
        for kind, chosen in {"": lengths, "terminated_": lengths[~truncated]}.items():
            if len(chosen):
                metrics.mean(f"completions/mean_{kind}length", chosen)
                metrics.min(f"completions/min_{kind}length", chosen)
                metrics.max(f"completions/max_{kind}length", chosen)
        for name, share in answer_shares(self.groups).items():
            metrics.mean(name, share)
        repeated = sum(group.num_prompt_tokens * len(group) + group.num_completion_tokens for group in self.groups)
        metrics.sum("num_tokens", repeated)


def _std(values: PerSequence, of_fewer_than_two: float) -> float:
    """The unbiased standard deviation of the values that are not NaN."""
    scored = values[~values.isnan()]
    return float(scored.std()) if len(scored) > 1 else of_fewer_than_two


def step_order(ranks: Sequence[Sequence[Place]], num_steps: int) -> list[Place]:
    """The groups of all ranks in the order that a single rank would have: [steps, ranks, groups], flattened."""
    sizes = [len(own) // num_steps for own in ranks]
    return [
        place
        for step in range(num_steps)
        for own, size in zip(ranks, sizes, strict=True)
        for place in own[step * size : (step + 1) * size]
    ]


def shares(order: Iterable[Place], sizes: Sequence[int], num_steps: int) -> list[list[Place]]:
    """The inverse of `step_order`: the groups that each rank learns from, `sizes` of them per step."""
    rest, ranks = iter(order), [list[Place]() for _ in sizes]
    for _ in range(num_steps):
        for own, size in zip(ranks, sizes, strict=True):
            own += islice(rest, size)
    return ranks


def exchanged(
    groups: Sequence[Group],
    ranks: Sequence[Sequence[Place]],
    rank: int,
    prompt: Callable[[int], Prompt],
    observed: Observed | None = None,
) -> list[Group]:
    """The groups that this rank learns from, from any rank. Completions are transferred; prompts are encoded again from their row.

    Args:
        groups: this rank's sampled groups.
        ranks: the groups that each rank learns from.
        rank: the rank of this process.
        prompt: encodes a row by its number.
        observed: see `group_from_state`.
    """
    if all(source == to for to, wanted in enumerate(ranks) for source, _ in wanted):
        return [groups[place] for _, place in ranks[rank]]
    leaving = {
        place: group_state(groups[place])
        for other, wanted in enumerate(ranks)
        for source, place in wanted
        if source == rank and other != rank
    }
    everywhere = gather_object([leaving])
    return [
        groups[place] if source == rank else group_from_state(everywhere[source][place], prompt, observed)
        for source, place in ranks[rank]
    ]
