"""Dynamic sampling (DAPO): prompts whose completions all have equal rewards are replaced by others, within a limit.

The loader supplies a rollout's rows as without dynamic sampling, so epochs, steps and resuming do not change. Replacement rows come from
a random order of the whole training set. The rollout's seed determines this order, so a resumed run finds the same rows without saved
state. Replacement rows are additional, so an epoch may use a row more than once. DAPO's own code takes them from the loader instead, so
the length of an epoch depends on the filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from boresight.report.metrics import MeanMetrics
from boresight.trainer.rollouts.rollout import Place, Rollout, step_order


@dataclass(frozen=True, slots=True)
class Resampled:
    """The result of dynamic sampling."""

    rollout: Rollout
    """All sampled groups."""
    kept: list[Place]
    """The groups to learn from, in the order of `step_order`; at the limit, groups without spread come last."""
    num_rounds: int
    num_flat: int
    """Number of kept groups without spread."""

    @property
    def shortage(self) -> str:
        """The message to log if groups without spread are kept."""
        return (
            f"after {self.num_rounds} rounds and {len(self.rollout.numbers)} groups, {self.num_flat} of the {len(self.kept)} groups to "
            "learn from still have rewards that are all equal; they are kept, without a learning signal. Raise max_sampling_rounds, or "
            "use prompts that are neither too easy nor too hard."
        )


def resample(
    first: Rollout,
    sample: Callable[[Sequence[Sequence[int]]], Rollout],
    further: Iterator[int],
    *,
    num_steps: int,
    max_rounds: int,
) -> Resampled:
    """Sample further prompts until the number of groups with spread equals the rollout's original number of groups.

    Every round samples as many prompts as groups are missing, and each rank takes an equal share. If the prompts do not divide evenly,
    some are sampled twice and the second result is ignored. So the kept groups do not depend on the number of ranks.

    Args:
        first: the loader's prompts, sampled and scored.
        sample: samples and scores the prompts of some rows, listed by rank, on all ranks at once.
        further: replacement rows, the same on every rank; when they are exhausted, the search ends.
        num_steps: optimizer steps that the rollout serves.
        max_rounds: the limit, including the first round.

    Reference:
        Yu et al., DAPO, arXiv 2503.14476, § 3.2, eq. 11.
    """
    rollout, world = first, len(first.sizes)
    tried = step_order(first.ranks, num_steps)
    wanted, num_rounds = len(tried), 1
    kept, flat = _by_spread(rollout, tried)
    while len(kept) < wanted and num_rounds < max_rounds and (rows := list(islice(further, wanted - len(kept)))):
        size = -(-len(rows) // world)
        dealt = list(islice(cycle(rows), size * world))
        start = [len(own) for own in rollout.sizes]
        rollout += sample([dealt[rank * size : (rank + 1) * size] for rank in range(world)])
        num_rounds += 1
        tried = [(place // size, start[place // size] + place % size) for place in range(len(rows))]
        more, without = _by_spread(rollout, tried)
        kept, flat = kept + more, flat + without
    num_flat = wanted - len(kept)
    return Resampled(rollout, kept + flat[:num_flat], num_rounds, num_flat)


def _by_spread(rollout: Rollout, places: Sequence[Place]) -> tuple[list[Place], list[Place]]:
    """The groups with spread, and those without."""
    is_flat = rollout.compared(places).zero_spread.tolist()
    both: tuple[list[Place], list[Place]] = ([], [])
    for place, without in zip(places, is_flat, strict=True):
        both[without].append(place)
    return both


def further_rows(num_rows: int, taken: Collection[int], seed: int) -> Iterator[int]:
    """The rows that a rollout has not used, each once, in a random order specific to the rollout."""
    # torch uses only the lower 32 bits of a seed.
    mixed = int.from_bytes(hashlib.sha256(f"further rows {seed}".encode()).digest()[:4])
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(mixed))
    return (row for row in order.tolist() if row not in taken)


def note_resampling(metrics: MeanMetrics, found: Resampled, rank: int) -> None:
    """Log the work of dynamic sampling; each rank counts its own groups."""
    num_sampled, num_kept = len(found.rollout.groups), sum(source == rank for source, _ in found.kept)
    num_flat = sum(source == rank for source, _ in found.kept[len(found.kept) - found.num_flat :])
    metrics.mean("rollout/num_rounds", found.num_rounds)
    metrics.sum("rollout/num_groups_sampled", num_sampled)
    metrics.sum("rollout/num_groups_thrown_away", num_sampled - num_kept)
    metrics.sum("rollout/num_groups_without_spread", num_flat)
