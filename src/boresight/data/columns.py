"""Columns renamed to boresight's names, and plain text made into conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from boresight.data.faithful import values_of, with_column
from boresight.data.formats import FORMATS, columns_given, converted
from boresight.data.paths import undecoded_stream
from boresight.data.schema import IMAGE_COLUMNS, TEXT_COLUMNS
from boresight.errors import DataError, nearest

Table = datasets.Dataset | datasets.IterableDataset

_ANSWERS = ("completion", "chosen", "rejected")
_TEXTS = ("string", "large_string")


def column_names(records: Table) -> list[str]:
    """The columns; those of a stream may only be known from its first record."""
    names = records.column_names
    if names is None:
        names = list(next(iter(records), {}))
    return list(names)


def renamed(records: Table, columns: Mapping[str, str], source: str) -> Table:
    """The records under the names that boresight reads.

    Args:
        columns: our name → the data set's, or the path to a value inside a column, such as `reward_model.ground_truth`.
        source: what an error calls the data set.

    Raises:
        DataError: a column is not there, or its new name is another's already; the message has all columns.
    """
    found = column_names(records)
    if columns and isinstance(records, datasets.IterableDataset):
        records = undecoded_stream(records, also=columns.values())
    new: dict[str, str] = {}
    for ours, theirs in columns.items():
        names = IMAGE_COLUMNS if ours == "image" else (ours,)
        is_nested = theirs not in found and theirs.partition(".")[0] in found
        if theirs not in found and not is_nested:
            raise DataError(
                f"--{ours}_column {theirs}: {source} has no such column, only {', '.join(found)}.{nearest(theirs, found)}"
            )
        if taken := [name for name in names if name in found and name != theirs]:
            raise DataError(
                f"--{ours}_column {theirs}: {source} has a column {taken[0]!r} as well. Drop one of the two, or leave the flag out."
            )
        if is_nested:
            records = _lifted(records, ours, theirs, source)
        elif theirs not in names:
            new[theirs] = ours
    return records.rename_columns(new) if new else records


def _lifted(records: Table, ours: str, path: str, source: str) -> Table:
    """The records with a column of the values that stand at a path inside another column."""
    column, *keys = path.split(".")
    if isinstance(records, datasets.IterableDataset):
        return records.map(lambda record: {**record, ours: _inside(record[column], keys)})
    outer = values_of(records, column)
    values = [_inside(value, keys) for value in outer]
    if all(value is None for value in values):
        example = next((value for value in outer if value is not None), None)
        known = list(example) if isinstance(example, Mapping) else []
        holds = (
            f"which has {', '.join(map(str, known))}" if known else f"whose first value is a {type(example).__name__}"
        )
        raise DataError(
            f"--{ours}_column {path}: no row of {source} has a value there, in the column {column!r}, {holds}."
            f"{nearest(keys[0], map(str, known))}"
        )
    return with_column(records, ours, values)


def _inside(value: Any, keys: Sequence[str]) -> Any:
    """The value at a path of keys and places, None where there is none. Text is read as JSON."""
    for key in keys:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def as_conversations(records: Table, *, prompt: bool, system_prompt: str | None) -> Table:
    """The records with conversations where plain text was.

    Args:
        prompt: make plain-text prompts user messages, and the answers beside them assistant messages.
        system_prompt: the system message at the start of every conversation.

    Raises:
        DataError: a system prompt was given and prompts are plain text.
    """
    texts = [name for name in column_names(records) if name in TEXT_COLUMNS and is_text(records, name)]
    if prompt:
        for name in texts:
            role = "assistant" if name in _ANSWERS else "user"
            records = _changed(records, name, lambda text, role=role: [{"role": role, "content": text}])
    elif system_prompt is not None and "prompt" in texts:
        raise DataError(
            "--system_prompt needs conversations, and the prompts are plain text: add --prompt_column prompt, which makes them user "
            "messages."
        )
    if system_prompt is None:
        return records
    records = _in_known_columns(records)
    names = [name for name in ("prompt", "messages") if name in column_names(records)] or ["chosen", "rejected"]
    for name in names:
        records = _changed(records, name, lambda messages: _with_system(messages, system_prompt))
    return records


def _in_known_columns(records: Table) -> Table:
    """The records with the text columns of other formats (`formats`) converted; images are untouched."""
    found = column_names(records)
    if not columns_given(found) - set(found):
        return records
    if isinstance(records, datasets.IterableDataset):
        return undecoded_stream(records).map(
            lambda record, index: converted(record, f"row {index}"), with_indices=True, remove_columns=found
        )
    read = {name for form in FORMATS for name in form.reads} | set(TEXT_COLUMNS) | {"system", "answer"}
    columns = {name: values_of(records, name) for name in found if name in read}
    rows = [
        converted(dict(zip(columns, values, strict=True)), f"row {index}")
        for index, values in enumerate(zip(*columns.values(), strict=True))
    ]
    for name in dict.fromkeys(name for row in rows for name in row):
        if any(name not in columns or row.get(name) != columns[name][index] for index, row in enumerate(rows)):
            records = with_column(records, name, [row.get(name) for row in rows])
    gone = [name for name in columns if all(name not in row for row in rows)]
    return records.remove_columns(gone)


def as_text(records: Table, names: Sequence[str]) -> Table:
    """The records with numbers in some columns as text: what is said must be text, whatever a file stores it as."""
    for name in names:
        if _is_number(records, name):
            records = _changed(records, name, str)
    return records


def _is_number(records: Table, name: str) -> bool:
    if records.features is not None and name in records.features:
        feature = records.features[name]
        return isinstance(feature, datasets.Value) and feature.dtype not in _TEXTS
    return isinstance(next(iter(records))[name], int | float)


def is_text(records: Table, name: str) -> bool:
    """Whether there is a column of that name with plain text."""
    if records.features is not None and name in records.features:
        feature = records.features[name]
        return isinstance(feature, datasets.Value) and feature.dtype in _TEXTS
    return records.features is None and isinstance(next(iter(records), {}).get(name), str)


def _changed(records: Table, name: str, change: Any) -> Table:
    """The records with one column changed; the others, images included, are untouched."""
    if isinstance(records, datasets.IterableDataset):
        return undecoded_stream(records).map(lambda record: {**record, name: change(record[name])})
    values = [None if value is None else change(value) for value in values_of(records, name)]
    return with_column(records, name, values)


def _with_system(conversation: Sequence[Mapping[str, Any]], system_prompt: str) -> list[Mapping[str, Any]]:
    """The conversation with a system message before it."""
    if conversation and conversation[0]["role"] == "system":
        raise DataError("--system_prompt: the conversations begin with a system message already. Leave the flag out.")
    content = conversation[0]["content"] if conversation else ""
    content = system_prompt if isinstance(content, str) else [{"type": "text", "text": system_prompt}]
    return [{"role": "system", "content": content}, *conversation]
