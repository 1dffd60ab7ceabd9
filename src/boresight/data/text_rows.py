"""Rows of plain text, made of a column (TRL's `dataset_text_field`) or by a function (TRL's `formatting_func`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets

from boresight.data.columns import column_names
from boresight.data.faithful import with_column
from boresight.data.formats import CONVERSATIONS, FORMATS
from boresight.data.paths import undecoded_stream
from boresight.data.schema import TEXT_COLUMNS
from boresight.data.sources import Records, RowDataset
from boresight.errors import DataError, nearest

TEXT = "text"
"""The column with the text of a row (`read_row`)."""

_SAID = frozenset([*TEXT_COLUMNS, *CONVERSATIONS, *(name for form in FORMATS for name in form.reads)])
"""Columns that a row is read from instead, where there are any."""


def text_rows(
    records: Records, *, field: str = TEXT, formatting_func: Callable[[Mapping[str, Any]], str] | None = None
) -> Records:
    """The records as rows of plain text; as they are where neither option asks for anything.

    Args:
        records: what `load_rows` returned.
        field: the column that holds the text; ``text`` or an empty string: no other.
        formatting_func: called with each record, its images still encoded, and returns its text. The columns that it may have made the text
            of (`prompt`, `messages`, …) are left out, images and all others are kept.

    Raises:
        DataError: there is no such column, or another one to learn from beside it; or the function fails, or does not return a string.
    """
    if formatting_func is not None:
        return _formatted(records, formatting_func)
    return records if field in (TEXT, "") else _renamed(records, field)


def _renamed(records: Any, field: str) -> Any:
    is_list = not isinstance(records, datasets.Dataset | datasets.IterableDataset)
    found = list(dict.fromkeys(name for record in records for name in record)) if is_list else column_names(records)
    if field not in found:
        raise DataError(
            f"dataset_text_field={field!r}: there is no such column, only {', '.join(found)}.{nearest(field, found)}"
        )
    if others := [name for name in found if name in (TEXT, "messages", "prompt", "completion")]:
        raise DataError(
            f"dataset_text_field={field!r}: the column {others[0]!r} is there as well, and one row is learned from once. Drop one of the "
            "two, or leave dataset_text_field out."
        )
    if isinstance(records, datasets.IterableDataset):
        records = undecoded_stream(records)  # or renaming decodes images and compresses them again
    if not is_list:
        return records.rename_column(field, TEXT)
    return [{TEXT if name == field else name: value for name, value in record.items()} for record in records]


def _formatted(records: Any, func: Callable[[Mapping[str, Any]], str]) -> Any:
    if isinstance(records, datasets.IterableDataset):
        records = undecoded_stream(records)
        return records.map(
            lambda record, index: {**_others(record), TEXT: _text(func, record, index)},
            with_indices=True,
            remove_columns=column_names(records),  # of which those that are kept are written again
        )
    if not isinstance(records, datasets.Dataset):
        return [{**_others(record), TEXT: _text(func, record, index)} for index, record in enumerate(records)]
    if records.format["type"] == "custom":
        raise DataError(
            "formatting_func is called once for each row, and the data set has a transform (with_transform), which may change rows each "
            "time: let the transform return the column 'text' instead."
        )
    rows = RowDataset(records)
    texts = [_text(func, rows.record(index), index) for index in range(len(rows))]
    left_out = [name for name in records.column_names if name in _SAID]
    return with_column(records.remove_columns(left_out), TEXT, texts)


def _others(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _SAID}


def _text(func: Callable[[Mapping[str, Any]], str], record: Mapping[str, Any], index: int) -> str:
    try:
        text: Any = func(record)
    except Exception as error:
        raise DataError(f"row {index}: formatting_func failed ({type(error).__name__}: {error}).") from error
    if not isinstance(text, str):
        raise DataError(
            f"row {index}: formatting_func returned a {type(text).__name__}. It gets one row and returns one string."
        )
    return text
