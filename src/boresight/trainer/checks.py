"""Rows tried before the first step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.data.sources import RowDataset
from boresight.errors import RewardError
from boresight.rewards.check import check_gold
from boresight.rewards.score import Scorer
from boresight.types import Prompt, Row

GOLD_ROWS = 256
"""Rows whose gold answers the rewards are tried on before training."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the rows of some data sets are. None: not all of them could be measured before training."""

    max_prompt_tokens: int | None
    """Of prompt and completions, where there are any."""
    max_images: int | None

    @classmethod
    def of(cls, checks: Sequence[RowCheck | None]) -> Extent:
        """Over data sets; None stands for one that can only be walked through."""
        if not checks or any(check is None for check in checks):
            return cls(None, None)
        known = [check for check in checks if check is not None]
        complete = all(check.num_tried == check.num_seen for check in known)
        return cls(
            max(check.max_tokens for check in known) if complete else None, max(check.max_images for check in known)
        )


class RowCheck:
    """Renders and tokenises a row and decodes its images, each image once.

    Reading a row has found what its columns and its images' headers say already. This finds what only the processor and the decoder
    know, within a time limit; a row beyond it is checked when it is used.

    Args:
        seconds: how long all calls together may take.
    """

    def __init__(self, encoder: Encoder, *, seconds: float = 20.0) -> None:
        self.encoder = encoder
        self.seconds = seconds
        self.num_tried = 0
        self.num_seen = 0
        self.max_tokens = 0
        """Of the rows that were tried: prompt and completions together."""
        self.max_images = 0
        """Of all rows."""
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> None:
        self.num_seen += 1
        self.max_images = max(self.max_images, len(row.images))
        if self.seconds <= 0:
            return
        start = time.perf_counter()
        # What sizes alone leave out is a few tokens an image.
        self.max_tokens = max(self.max_tokens, self.encoder.count_tokens(row) + 16 * len(row.images))
        for image in row.images:
            if image.digest not in self._decoded:
                decode(image, where=f"row {row.index}")
                self._decoded.add(image.digest)
        self.num_tried += 1
        self.seconds -= time.perf_counter() - start


def gold_findings(scorer: Scorer, records: Any, template: str, *, seed: int, is_error: bool) -> list[str]:
    """How the answer rewards mark the gold answers of up to `GOLD_ROWS` rows, a line for each reward.

    Raises:
        RewardError: `is_error`, and a reward does not give full marks to all of them, or gives them to nonsense too.
    """
    rows = RowDataset(records)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:GOLD_ROWS].tolist()
    checks = check_gold(scorer, [_unprocessed(rows[index]) for index in sorted(picked)], template)
    unsound = [str(check) for check in checks if not check.is_sound]
    if unsound and is_error:
        raise RewardError(
            f"The rewards do not know the gold answers. {' '.join(unsound)}. Mend these rows, or set gold_template to how a right answer "
            "looks, or gold_check='warn'."
        )
    return [f"gold check: {check}." for check in checks if check.num_rows]


def _unprocessed(row: Row) -> Prompt:
    """A prompt that only reward functions read: its images stay unprocessed, and it has no tokens."""
    nothing = torch.empty(0, dtype=torch.long)
    return Prompt(row=row, ids=nothing, token_types=nothing, vision={}, unexpanded_ids=nothing)
