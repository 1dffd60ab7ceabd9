"""Columns of Python values as Arrow columns from which the same values are read again.

Arrow's own inference changes values: text that looks like a date becomes a date, an integer beside a fraction becomes a fraction, and a
mapping gets the keys of all others. Here a column of one simple type keeps that type, and every other column is stored as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
from datasets.table import ConcatenationTable

_INT64 = range(-(2**63), 2**63)
_NOTHING, _JSON, _TEXTS = "nothing", "json", "texts"


def kind_of(value: Any) -> str:
    """The kind of one value: an Arrow type (`string`, `int64`, `float64`, `bool`), `texts`, `json`, or `nothing` for None."""
    match value:
        case None:
            return _NOTHING
        case bool():
            return "bool"
        case int():
            return "int64" if value in _INT64 else _JSON
        case float():
            return "float64"
        case str():
            return "string"
        case list() if value and all(isinstance(item, str) for item in value):
            return _TEXTS
    return _JSON


def common_kind(first: str, second: str) -> str:
    """The kind of a column that holds values of both kinds."""
    if first == second or second == _NOTHING:
        return first
    return second if first == _NOTHING else _JSON


def feature_of(kind: str) -> Any:
    """The `datasets` feature of a column of this kind."""
    if kind == _TEXTS:
        return datasets.List(datasets.Value("string"))
    if kind == _JSON:
        return datasets.Json()
    return datasets.Value("string" if kind == _NOTHING else kind)


def stored(value: Any, kind: str) -> Any:
    """The value as a column of this kind takes it.

    Raises:
        TypeError: JSON has no form for the value.
    """
    return value if kind != _JSON or value is None else json.dumps(value)


def with_column(records: datasets.Dataset, name: str, values: Sequence[Any]) -> datasets.Dataset:
    """The records with a column of these values, in the place of a column of that name or as the last one. The others are untouched."""
    order = list(records.column_names)
    if name in order:
        records = records.remove_columns([name])
    else:
        order.append(name)
    kind = column_kind(values)
    try:
        column, feature = [stored(value, kind) for value in values], feature_of(kind)
    except TypeError:  # images and bytes inside have no form in JSON; Arrow knows them
        column, feature = list(values), None
    if not records.column_names:
        features = None if feature is None else datasets.Features({name: feature})
        return datasets.Dataset.from_dict({name: column}, features=features)
    return select_columns(records.add_column(name, column, feature=feature), order)  # pyright: ignore[reportCallIssue, reportArgumentType]


def select_columns(records: Any, names: Sequence[str]) -> Any:
    """The records with these columns alone, in this order."""
    records = records.select_columns(list(names))
    table = getattr(records, "data", None)
    if not isinstance(table, ConcatenationTable):
        return records
    # `datasets` keeps blocks of which no column is left, with no rows, and cannot concatenate them.
    blocks: Any = [[block for block in row if block.num_columns] for row in table.blocks]
    table = ConcatenationTable.from_blocks(blocks)
    return datasets.Dataset(
        table.select(list(names)), info=records.info, split=records.split, fingerprint=records._fingerprint
    )


def column_kind(values: Iterable[Any]) -> str:
    """The kind of a column with these values."""
    kind = _NOTHING
    for value in values:
        kind = common_kind(kind, kind_of(value))
    return kind
