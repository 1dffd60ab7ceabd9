"""Preference pairs in an optimizer step, and the handling of overlong pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boresight.data.encode import Encoder
from boresight.data.sources import RowDataset
from boresight.errors import DataError
from boresight.types import Group

MAX_NAMED = 10


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A group of two with the other inputs of the losses. Its two branches stay in one pass, because the loss compares them."""

    group: Group
    reference: Tensor | None = None
    """[2] `completion_logps` under the reference; None until computed."""
    partners: Tensor | None = None
    """[3] as `aot_partners` returns; None if no loss is coupled."""

    def __len__(self) -> int:
        return 1

    @property
    def num_tokens(self) -> int:
        return self.group.num_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return self.group.num_prompt_tokens

    def branches(self, start: int, stop: int) -> Pair:
        return self


@dataclass(frozen=True, slots=True)
class PairLengths:
    """The results of checking every pair."""

    num_pairs: int
    overlong: tuple[tuple[int, int], ...]
    """Row and length, in tokens, of each pair whose longer side exceeds `max_length`."""
    hopeless: tuple[tuple[int, int], ...]
    """The overlong pairs whose prompt alone leaves no room for an answer."""
    num_identical: int
    """Pairs whose chosen and rejected answers are equal: losses of the margin learn nothing from them."""


def pair_lengths(encoder: Encoder, records: Any, max_length: int | None) -> PairLengths:
    """Check every pair before training."""
    overlong: list[tuple[int, int]] = []
    hopeless: list[tuple[int, int]] = []
    num_identical = 0
    rows = RowDataset(records)
    for index in range(len(rows)):
        row = rows[index]
        num_identical += len(row.completions) == 2 and row.completions[0] == row.completions[1]
        if max_length is None or encoder.fits(row, max_length):
            continue
        group = encoder.preference(row)
        longest = max(len(completion.ids) for completion in group.completions)
        overlong.append((index, group.num_prompt_tokens + longest))
        if group.num_prompt_tokens >= max_length:
            hopeless.append(overlong[-1])
    return PairLengths(len(rows), tuple(overlong), tuple(hopeless), num_identical)


def kept_pairs(found: PairLengths, policy: str, max_length: int | None) -> list[int]:
    """The rows that training may use.

    Raises:
        DataError: pairs are too long under `error`, prompts are too long under `truncate_completion`, or no pair is left.
    """
    refused = {"error": found.overlong, "truncate_completion": found.hopeless, "drop": ()}[policy]
    if refused:
        why = "are longer" if policy == "error" else "have prompts that leave no room for an answer"
        ways = ", 'truncate_completion'" if len(found.overlong) > len(found.hopeless) else ""
        raise DataError(
            f"{len(refused)} of {found.num_pairs} pairs {why} than max_length={max_length} allows: {_named(refused)}. Raise max_length, "
            f"lower max_pixels, or set overlong_pairs to 'drop'{ways if policy == 'error' else ''}."
        )
    dropped = {index for index, _ in found.overlong} if policy == "drop" else set()
    kept = [index for index in range(found.num_pairs) if index not in dropped]
    if not kept:
        raise DataError(f"All {found.num_pairs} pairs are longer than max_length={max_length}, and none is left.")
    return kept


def _named(found: Iterable[tuple[int, int]]) -> str:
    found = list(found)
    named = ", ".join(f"row {index} ({length} tokens)" for index, length in found[:MAX_NAMED])
    return named + (f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else "")


def selected(records: Any, kept: list[int]) -> Any:
    """The records of some rows."""
    return records.select(kept) if hasattr(records, "select") else [records[index] for index in kept]


def stacked(values: Iterable[Tensor | None], device: torch.device) -> Tensor | None:
    """The tensors stacked, or None if there are none."""
    present = [value for value in values if value is not None]
    return torch.stack(present).to(device) if present else None
