"""Checks of rows before the first step."""

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
from boresight.trainer.identity import RowsDigest
from boresight.types import Prompt, Row

GOLD_ROWS = 256
"""Maximum rows whose gold answers are scored before training."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The largest sizes in some data sets. None: not all rows could be measured before training."""

    max_prompt_tokens: int | None
    """Tokens of the prompt and of any completions in the row."""
    max_images: int | None

    @classmethod
    def of(cls, checks: Sequence[RowCheck | None]) -> Extent:
        """The extent over several data sets; None stands for one that can only be iterated."""
        if not checks or any(check is None for check in checks):
            return cls(None, None)
        known = [check for check in checks if check is not None]
        complete = all(check.num_tried == check.num_seen for check in known)
        return cls(
            max(check.max_tokens for check in known) if complete else None, max(check.max_images for check in known)
        )


class RowCheck:
    """Renders and tokenises a row and decodes its images, each image once.

    Reading a row has already checked its columns and its images' headers. This runs the processor and the decoder too, within a time
    limit. Rows beyond the limit are checked when they are used.

    Args:
        seconds: time limit of all calls together.
    """

    def __init__(self, encoder: Encoder, *, seconds: float = 20.0) -> None:
        self.encoder = encoder
        self.seconds = seconds
        self.num_tried = 0
        self.num_seen = 0
        self.max_tokens = 0
        """Over the checked rows: prompt and completions together."""
        self.max_images = 0
        """Over all rows."""
        self.digest = RowsDigest()
        """Of all rows."""
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> None:
        self.num_seen += 1
        self.digest.add(row)
        self.max_images = max(self.max_images, len(row.images))
        if self.seconds <= 0:
            return
        start = time.perf_counter()
        # A count from image sizes alone misses a few tokens per image.
        self.max_tokens = max(self.max_tokens, self.encoder.count_tokens(row) + 16 * len(row.images))
        for image in row.images:
            if image.digest not in self._decoded:
                decode(image, where=f"row {row.index}")
                self._decoded.add(image.digest)
        self.num_tried += 1
        self.seconds -= time.perf_counter() - start


def gold_findings(scorer: Scorer, records: Any, template: str, *, seed: int, is_error: bool) -> list[str]:
    """The results of the answer rewards on the gold answers of up to `GOLD_ROWS` rows, one line per reward.

    Raises:
        RewardError: `is_error` is set, and a reward does not give the full score to all gold answers, or also gives it to nonsense.
    """
    rows = RowDataset(records)
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:GOLD_ROWS].tolist()
    checks = check_gold(scorer, [_unprocessed(rows[index]) for index in sorted(picked)], template)
    unsound = [str(check) for check in checks if not check.is_sound]
    if unsound and is_error:
        raise RewardError(
            f"The rewards do not accept the gold answers. {' '.join(unsound)}. Fix these rows, or set gold_template to the format of a "
            "right answer, or set gold_check='warn'."
        )
    return [f"gold check: {check}." for check in checks if check.num_rows]


def _unprocessed(row: Row) -> Prompt:
    """A prompt for reward functions only: its images are not processed, and it has no tokens."""
    nothing = torch.empty(0, dtype=torch.long)
    return Prompt(row=row, ids=nothing, token_types=nothing, vision={}, unexpanded_ids=nothing)
