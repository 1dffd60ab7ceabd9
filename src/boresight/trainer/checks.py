"""Rows tried before the first step."""

from __future__ import annotations

import time

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.types import Row


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
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> None:
        if self.seconds <= 0:
            return
        start = time.perf_counter()
        self.encoder.count_tokens(row)
        for picture in row.pictures:
            if picture.digest not in self._decoded:
                decode(picture, where=f"row {row.index}")
                self._decoded.add(picture.digest)
        self.num_tried += 1
        self.seconds -= time.perf_counter() - start
