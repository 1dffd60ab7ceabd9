"""The state of some ranks, dealt to another number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from boresight.report.metrics import MeanMetrics

Item = TypeVar("Item")


def dealt(ranks: Sequence[Sequence[Item]], num_steps: int, rank: int, num_ranks: int) -> list[Item]:
    """The groups of one of `num_ranks` new ranks, step by step: each step keeps its groups, in their order over all ranks.

    Args:
        ranks: the groups of each old rank, in the order in which its steps learn from them; every step has as many.
        num_steps: the steps of a rollout.
        rank: the new rank.

    Returns:
        Its groups, in the same order.
    """
    own: list[Item] = []
    for step in range(num_steps):
        together = [item for items in ranks for item in items[_share(len(items), step, num_steps)]]
        own += together[_share(len(together), rank, num_ranks)]
    return own


def _share(length: int, part: int, num_parts: int) -> slice:
    return slice(length * part // num_parts, length * (part + 1) // num_parts)


def merged_sums(ranks: Sequence[Mapping[str, Any]], rank: int, num_ranks: int) -> dict[str, Any]:
    """The sums between two logs of a new rank. Over all ranks, they add up to the same.

    transformers logs the mean of ranks' losses, so each new rank has the mean.
    """
    metrics = MeanMetrics()
    for old in range(rank, len(ranks), num_ranks):
        other = MeanMetrics()
        other.load_state_dict(ranks[old]["metrics"])
        metrics.absorb(other)
    loss = torch.stack([sums["loss"] for sums in ranks]).mean(0)
    return {**ranks[0], "metrics": metrics.state_dict(), "loss": loss}
