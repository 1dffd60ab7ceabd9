"""Columns of Python values as Arrow columns from which the same values are read again.

Arrow's own inference changes values: text that looks like a date becomes a date, an integer beside a fraction becomes a fraction, and a
mapping gets the keys of all others. Here a column of one simple type keeps that type, and every other column is stored as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
from datasets.table import ConcatenationTable
from datasets.utils.json import ujson_loads

from boresight.errors import DataError

_INT64 = range(-(2**63), 2**63)
_LONG = re.compile(r"\d{19}")
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
        DataError: it holds an integer of more than 64 bits.
    """
    if kind != _JSON or value is None:
        return value
    text = json.dumps(value)
    if _LONG.search(text):
        try:
            ujson_loads(text)  # `datasets` reads what it stores, and stores what it cannot read as something else
        except ValueError as error:
            raise DataError(
                f"an integer of more than 64 bits ({text[:40]}) cannot be stored: write it as text."
            ) from error
    return text


def values_of(records: datasets.Dataset, name: str) -> list[Any]:
    """The values of a column, images still encoded. JSON is read by Python: `datasets` rounds its fractions and drops its NaN."""
    features = readable_features(datasets.Features({name: records.features[name]}))
    column: Any = records.select_columns([name]).with_format("arrow")
    return [decoded(record, features)[name] for batch in column.iter(batch_size=1000) for record in batch.to_pylist()]


def readable_features(features: datasets.Features) -> dict[str, Any]:
    """The features by which `decoded` reads a record: images stay encoded in those that it is given."""
    return {
        name: None if isinstance(item, datasets.Json) else datasets.Features({name: item})
        for name, item in features.items()
    }


def decoded(record: dict[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it is stored → its values."""
    result: dict[str, Any] = {}
    for name, value in record.items():
        feature = features[name]
        if feature is None:
            result[name] = value if value is None else json.loads(value)
        else:
            result |= feature.decode_example({name: value})
    return result


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
