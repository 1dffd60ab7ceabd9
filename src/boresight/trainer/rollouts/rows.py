"""What a rollout is sampled from: the training rows as prompts, and a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from boresight.types import Prompt


@dataclass(frozen=True, slots=True)
class PromptRows:
    """The training rows as prompts, by number. Dynamic sampling takes further prompts from them."""

    count: Callable[[], int]
    prompt: Callable[[int], Prompt]
    """Encodes a row by its number."""


def seed_of_rollout(seed: int, step: int) -> int:
    """The seed of the rollout that begins at an optimizer step.

    Each has its own, so that completions depend neither on the number of ranks nor on earlier work.

    Args:
        seed: the run's.
    """
    return (seed << 32) + step
