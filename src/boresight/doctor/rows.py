"""What was found about the rows: those that cannot be used, and how long they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from boresight.data.sources import RowDataset
from boresight.preflight import Finding
from boresight.trainer.base import GroupTrainer
from boresight.trainer.checks import row_lengths
from boresight.trainer.loading import is_stream
from boresight.trainer.sft import SFTTrainer

SHOWN = 5
"""Rows of one kind that are named."""


def check_rows(trainer: GroupTrainer[Any], on_bad_row: str) -> Iterator[Finding]:
    """The rows that cannot be used, and what `on_bad_row` does with them.

    Args:
        trainer: made with `on_bad_row='drop'`, so that it lists the bad rows.
        on_bad_row: the user's.
    """
    bad = [row for row in trainer.set_aside if row.data_set == "train"]
    for row in bad[:SHOWN]:
        if on_bad_row == "error":
            yield Finding("rows", "error", "", row.reason, "Or leave such rows out: on_bad_row='drop'.")
        else:
            done = "keeps its text, if that can be used" if on_bad_row == "keep_text" else "leaves it out"
            yield Finding("rows", "warning", "", row.reason, f"on_bad_row={on_bad_row!r} {done}.")
    if len(bad) > SHOWN:
        yield Finding(
            "rows",
            "error" if on_bad_row == "error" else "warning",
            "",
            f"{len(bad)} rows in all cannot be used.",
            "See above.",
        )
    if is_stream(trainer.train_dataset):
        yield Finding("rows", "note", "", "the rows are a stream: each is checked when it is read.")
    else:
        yield Finding("rows", "note", "", f"{len(trainer.train_dataset)} rows can be used.")


def check_lengths(trainer: GroupTrainer[Any]) -> Iterator[Finding]:
    """Tokens of all rows from texts and image sizes alone, the longest rows, and what `max_length` does with them."""
    if is_stream(trainer.train_dataset):
        return
    report = row_lengths(trainer.encoder, trainer.train_dataset)
    known = sorted(((length, row) for row, length in enumerate(report.lengths) if length is not None), reverse=True)
    if not known:
        return
    lengths = [length for length, _ in known]
    yield Finding(
        "lengths", "note", "",
        f"{sum(lengths):,} tokens in {len(lengths)} rows: median {statistics.median(lengths):g}, longest {lengths[0]}; at most "
        f"{report.max_images} images in a row.",
    )  # fmt: skip
    rows = RowDataset(trainer.train_dataset)
    for length, row in known[:3]:
        sizes = ", ".join("×".join(map(str, image.size)) for image in rows[row].images)
        yield Finding("lengths", "note", f"row {row}", f"{length} tokens{f', images of {sizes}' if sizes else ''}.")
    limit = trainer.args.max_length if isinstance(trainer, SFTTrainer) else None
    if over := [row for length, row in known if limit is not None and length > limit]:
        named = ", ".join(map(str, sorted(over)[:SHOWN])) + (", …" if len(over) > SHOWN else "")
        yield Finding(
            "lengths", "warning", "max_length",
            f"{len(over)} of {len(lengths)} rows ({named}) are longer than max_length={limit}, and are cut at the end.",
            "Raise max_length, or lower max_pixels.",
        )  # fmt: skip


def longest_rows(trainer: GroupTrainer[Any], count: int) -> list[int]:
    """The numbers of the longest rows, longest first; of a stream none."""
    if is_stream(trainer.train_dataset):
        return []
    lengths = row_lengths(trainer.encoder, trainer.train_dataset).lengths
    return sorted(range(len(lengths)), key=lambda row: -(lengths[row] or 0))[:count]
