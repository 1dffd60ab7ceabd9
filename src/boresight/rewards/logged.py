"""What reward functions log beside their rewards, under names that no metric of boresight's own has."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from boresight.errors import RewardError


class Logged:
    """What reward functions log beside their rewards.

    Args:
        is_taken: whether a metric of this name is logged by others.
    """

    def __init__(self, is_taken: Callable[[str], bool] | None) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.columns: dict[str, list[Any]] = {}
        self._is_taken = is_taken or (lambda name: False)

    def add_metric(self, name: str, value: float) -> None:
        """Add a number of a reward function.

        Raises:
            RewardError: the name is no text, or belongs to another metric.
        """
        if not isinstance(name, str):
            raise RewardError(f"log_metric({name!r}, …): a metric's name is a text.")
        if self._is_taken(name) and not re.fullmatch(r"rewards/[^/]+/unparsed", name):
            raise RewardError(
                f"log_metric({name!r}, …): boresight logs a metric of this name itself; choose another, such as {f'my_{name}'!r}."
            )
        self.add_own(encodable(name), value)

    def add_own(self, name: str, value: float) -> None:
        """Add a number of ours."""
        self.metrics.setdefault(name, []).append(float(value))

    def add_column(self, column: str, values: Sequence[Any]) -> None:
        self.columns[encodable(str(column))] = [encodable(each) if isinstance(each, str) else each for each in values]

    def check(self, num_completions: int) -> None:
        for column, values in self.columns.items():
            if len(values) != num_completions:
                raise RewardError(
                    f"log_extra({column!r}, …) was given {len(values)} values for {num_completions} completions: "
                    "give one per completion."
                )


def encodable(text: str) -> str:
    r"""The text with halves of surrogate pairs, which no file can hold, as ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode()
