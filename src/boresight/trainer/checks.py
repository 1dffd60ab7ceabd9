"""Rows tried before the first step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.types import Row


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the rows of some data sets are. None: not all of them could be measured before training."""

    max_prompt_tokens: int | None
    """Of prompt and completions, where there are any."""
    max_pictures: int | None

    @classmethod
    def of(cls, checks: Sequence[RowCheck | None]) -> Extent:
        """Over data sets; None stands for one that can only be walked through."""
        if not checks or any(check is None for check in checks):
            return cls(None, None)
        known = [check for check in checks if check is not None]
        complete = all(check.num_tried == check.num_seen for check in known)
        return cls(
            max(check.max_tokens for check in known) if complete else None, max(check.max_pictures for check in known)
        )


class RowCheck:
    """Renders and tokenises a row and decodes its pictures, each picture once.

    Reading a row has found what its columns and its pictures' headers say already. This finds what only the processor and the decoder
    know, as long as time lasts; a row it did not come to is found when it is drawn.

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
        self.max_pictures = 0
        """Of all rows."""
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> None:
        self.num_seen += 1
        self.max_pictures = max(self.max_pictures, len(row.pictures))
        if self.seconds <= 0:
            return
        start = time.perf_counter()
        # What sizes alone leave out is a few tokens a picture.
        self.max_tokens = max(self.max_tokens, self.encoder.count_tokens(row) + 16 * len(row.pictures))
        for picture in row.pictures:
            if picture.digest not in self._decoded:
                decode(picture, where=f"row {row.index}")
                self._decoded.add(picture.digest)
        self.num_tried += 1
        self.seconds -= time.perf_counter() - start
