"""Dynamic sampling (DAPO): prompts whose completions all earn the same are replaced by others, within a limit.

The rows of a draw come from the loader as always, so epochs, steps and resuming stay what they are. Rows that replace some of them
are taken from a random order of the whole training set, which the draw's seed decides: nothing need be saved for a resumed run to
find the same ones. They are drawn in addition, so in an epoch with dynamic sampling a row may come more than once. DAPO's own code
takes them from the loader instead, so that an epoch is as long as the filter lets it be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from boresight.advantage.options import AdvantageConfig
from boresight.report.metrics import MeanMetrics
from boresight.trainer.drawn import Drawn, Place, step_order


@dataclass(frozen=True, slots=True)
class Resampled:
    """What dynamic sampling ended with."""

    drawn: Drawn
    """All that was sampled."""
    kept: list[Place]
    """The groups that are learned from, in the order of `step_order`; at the limit those without spread come last."""
    num_rounds: int
    num_flat: int
    """How many of those kept have no spread."""

    @property
    def shortage(self) -> str:
        """What to tell the user where groups without spread are kept."""
        return (
            f"after {self.num_rounds} rounds and {len(self.drawn.places)} groups, {self.num_flat} of the {len(self.kept)} groups to "
            "learn from still have rewards that are all equal; they stay and teach nothing. Raise max_sampling_rounds, or take "
            "prompts that are neither too easy nor too hard."
        )


def resample(
    first: Drawn,
    sample: Callable[[Sequence[Sequence[int]]], Drawn],
    further: Iterator[int],
    config: AdvantageConfig,
    *,
    num_steps: int,
    max_rounds: int,
) -> Resampled:
    """Sample further prompts until there are as many groups with spread as the draw began with.

    Every round samples as many prompts as groups are missing, and each rank takes an equal share of them: where they do not come out
    even, some are sampled twice and the second is ignored. So what is kept does not depend on the number of ranks.

    Args:
        first: the loader's prompts, sampled and scored.
        sample: samples and scores the prompts of some rows, given for each rank, on all ranks at once.
        further: rows to go on with, the same on every rank; where it ends, so does the search.
        num_steps: optimizer steps that the draw serves.
        max_rounds: the limit, the first round included.

    Reference:
        Yu et al., DAPO, arXiv 2503.14476, § 3.2, eq. 11.
    """
    drawn, world = first, len(first.scores)
    tried = step_order(first.ranks, num_steps)
    wanted, num_rounds = len(tried), 1
    kept, flat = _by_spread(drawn, tried, config)
    while len(kept) < wanted and num_rounds < max_rounds and (rows := list(islice(further, wanted - len(kept)))):
        size = -(-len(rows) // world)
        dealt = list(islice(cycle(rows), size * world))
        start = [len(groups) for groups in drawn.scores]
        drawn += sample([dealt[rank * size : (rank + 1) * size] for rank in range(world)])
        num_rounds += 1
        tried = [(place // size, start[place // size] + place % size) for place in range(len(rows))]
        more, without = _by_spread(drawn, tried, config)
        kept, flat = kept + more, flat + without
    num_flat = wanted - len(kept)
    return Resampled(drawn, kept + flat[:num_flat], num_rounds, num_flat)


def _by_spread(drawn: Drawn, places: Sequence[Place], config: AdvantageConfig) -> tuple[list[Place], list[Place]]:
    """The groups with spread, and those without."""
    is_flat = drawn.compared(places, config).zero_spread.tolist()
    both: tuple[list[Place], list[Place]] = ([], [])
    for place, without in zip(places, is_flat, strict=True):
        both[without].append(place)
    return both


def further_rows(num_rows: int, taken: Collection[int], seed: int) -> Iterator[int]:
    """The rows that a draw has not taken, in a random order of its own, each once."""
    # torch heeds the lower 32 bits of a seed alone.
    mixed = int.from_bytes(hashlib.sha256(f"further rows {seed}".encode()).digest()[:4])
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(mixed))
    return (row for row in order.tolist() if row not in taken)


def note_resampling(metrics: MeanMetrics, found: Resampled, rank: int) -> None:
    """Count what dynamic sampling took; each rank counts its own groups."""
    num_sampled, num_kept = len(found.drawn.groups), sum(source == rank for source, _ in found.kept)
    num_flat = sum(source == rank for source, _ in found.kept[len(found.kept) - found.num_flat :])
    metrics.mean("rollout/num_rounds", found.num_rounds)
    metrics.sum("rollout/num_groups_sampled", num_sampled)
    metrics.sum("rollout/num_groups_thrown_away", num_sampled - num_kept)
    metrics.sum("rollout/num_groups_without_spread", num_flat)
