"""Completions as a run page holds them: numbers as columns, texts and tokens in packed blocks, each image once."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import UnidentifiedImageError

from boresight.report.page_shell import Images, packed
from boresight.report.tokens import TokenTexts

ROWS_PER_BLOCK = 512
"""Completions whose texts are unpacked together."""
MAX_ANSWER_CHARS = 300
COLUMNS = ("step", "phase", "rank", "group", "row", "length", "truncated", "reward", "advantage", "kept")


def browsable(
    table: pa.Table, *, run: str | Path, texts: TokenTexts | None, images: Images, max_rows: int
) -> dict[str, Any]:
    """The data of the page's completions browser.

    Args:
        table: as `read_completions` returns it, a group's completions side by side.
        run: the run folder, for its images.
        texts: turns token ids into text; None: tokens are not shaded.
        images: every image that is shown is added to it.
        max_rows: the most completions that the page holds; beyond that, whole steps are left out, evenly, and counted.
    """
    shown, left_out = thinned(table, max_rows)
    turns = [json.loads(text or "[]") for text in shown["turns"].to_pylist()] if "turns" in shown.column_names else []
    names = [*shown["images"].to_pylist(), *([name for turn in row for name in turn["images"]] for row in turns)]
    lost = _add_images(names, Path(run) / "images", images)
    prompts, prompt_of = _distinct(shown["prompt"])
    others, other_of = _distinct(shown["row_columns"]) if "row_columns" in shown.column_names else ([], [])
    columns = {name: _column(shown[name]) for name in COLUMNS if name in shown.column_names}
    known = {"prompt": prompt_of, "images": shown["images"].to_pylist(), "turns": turns, "other": other_of}
    for name in ("right_answer", "answer"):
        if name in shown.column_names:
            known[name] = [None if text is None else text[:MAX_ANSWER_CHARS] for text in shown[name].to_pylist()]
    extra = [name for name in shown.column_names if name.startswith("extra/")]
    return {
        "num": table.num_rows,
        "steps_left_out": left_out,
        "images_lost": lost,
        "columns": packed(columns | known),
        "rewards": {
            name.partition("/")[2]: _column(shown[name]) for name in shown.column_names if name.startswith("rewards/")
        },
        "prompts": packed(prompts),
        "others": packed([{} if text is None else json.loads(text) for text in others]),
        "has_tokens": texts is not None,
        "blocks": [_block(rows, texts, extra) for rows in _blocks(shown)],
    }


def thinned(table: pa.Table, max_rows: int) -> tuple[pa.Table, int]:
    """At most `max_rows` rows, and how many steps were left out: whole ones, evenly, never the first or the last."""
    sizes = Counter(table["step"].to_pylist())
    steps, kept = sorted(sizes), set(sizes)
    while sum(sizes[step] for step in kept) > max_rows and len(kept) > 2:
        num = len(kept) - 1
        kept = {steps[round(place * (len(steps) - 1) / (num - 1))] for place in range(num)}
    return table.filter(pc.field("step").isin(kept)), len(steps) - len(kept)


def _blocks(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, ROWS_PER_BLOCK):
        yield table.slice(start, ROWS_PER_BLOCK)


def _block(rows: pa.Table, texts: TokenTexts | None, extra: Sequence[str]) -> dict[str, Any]:
    """Texts, unpacked together to be searched and shown, and separately tokens, unpacked when a reader opens them."""
    shown: dict[str, Any] = {"completion": rows["completion"].to_pylist()}
    shown |= {name: rows[name].to_pylist() for name in extra}
    has_logp = "logp" in rows.column_names
    if texts is None or not has_logp:
        return {"num": rows.num_rows, "texts": packed(shown), "tokens": None}
    logp = [None if row is None else [_hundredths(value) for value in row] for row in rows["logp"].to_pylist()]
    return {
        "num": rows.num_rows,
        "texts": packed(shown),
        "tokens": packed({"texts": texts(rows["completion_ids"].to_pylist()), "logp": logp}),
    }


def _hundredths(logp: float | None) -> int | None:
    """Hundredths of a nat, enough for a shade and a shown number; null where it is missing or not finite."""
    return None if logp is None or not -1e6 < logp <= 0 else round(100 * logp)


def _column(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_floating(column.type):
        # JSON has no number that is not finite; the page shows it as missing.
        return [
            None if value is None or not math.isfinite(value) else float(f"{value:.5g}") for value in column.to_pylist()
        ]
    return column.to_pylist()


def _distinct(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    """The distinct texts, and each row's place among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_pylist()


def _add_images(names: Sequence[Sequence[str]], folder: Path, images: Images) -> int:
    """Add the images of lists of names to the page; returns how many files are missing or not images."""
    lost = 0
    for name in dict.fromkeys(name for row in names for name in row):
        try:
            images.add(folder / name, name=name)
        except (OSError, UnidentifiedImageError):
            lost += 1
    return lost
