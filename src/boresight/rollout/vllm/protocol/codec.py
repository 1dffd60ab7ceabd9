"""Converts records to JSON and back. Every field is checked on reading, because the other side may run another boresight version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from boresight.errors import BoresightError

Record = TypeVar("Record")


class PayloadError(BoresightError, ValueError):
    """A payload does not match its record. The message names the field."""


def to_dict(record: Any) -> dict[str, Any]:
    """Convert a dataclass to JSON types."""
    return asdict(record)


def to_json(record: Any) -> str:
    """Convert a dataclass to a JSON string."""
    return json.dumps(asdict(record))


def from_dict(kind: type[Record], value: object) -> Record:
    """Read a dataclass from JSON types.

    Raises:
        PayloadError: a field is missing, unknown, or of the wrong type.
    """
    return cast("Record", _read(kind, value, kind.__name__))


def from_json(kind: type[Record], text: str) -> Record:
    """Read a dataclass from a JSON string.

    Raises:
        PayloadError: the string is not JSON, or as for `from_dict`.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PayloadError(f"{kind.__name__} is not JSON: {text[:100]!r}") from error
    return from_dict(kind, value)


def _read(kind: Any, value: object, place: str) -> object:
    """Convert `value` to the annotation `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # only with None
        if value is None and NoneType in arguments:
            return None
        return _read(next(each for each in arguments if each is not NoneType), value, place)
    if origin is Literal:
        if value in arguments:
            return value
        raise PayloadError(f"{place} is {value!r:.100} instead of one of {', '.join(map(repr, arguments))}")
    if origin is list:
        items = _container(Sequence, "a list", value, place)
        return [_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(items)]
    if origin is dict:
        entries = _container(Mapping, "an object", value, place)
        return {name: _read(arguments[1], item, f"{place}[{name!r}]") for name, item in entries.items()}
    if is_dataclass(kind):
        return _read_record(kind, value, place)
    return _read_plain(kind, value, place)


def _read_record(kind: Any, value: object, place: str) -> object:
    found = _container(Mapping, "an object", value, place)
    hints, names = get_type_hints(kind), [field.name for field in fields(kind)]
    if missing := [name for name in names if name not in found]:
        raise PayloadError(f"{place} lacks {', '.join(missing)}")
    if unknown := [str(name) for name in found if name not in names]:
        raise PayloadError(f"{place} has the unknown field {', '.join(unknown)}")
    return kind(**{name: _read(hints[name], found[name], f"{place}.{name}") for name in names})


def _read_plain(kind: type, value: object, place: str) -> object:
    if kind is float and type(value) is int:  # JSON does not distinguish int and float
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise PayloadError(f"{place} is {value!r:.100} instead of {kind.__name__}")
    return value


def _container(kind: Any, name: str, value: object, place: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, str):
        raise PayloadError(f"{place} is {value!r:.100} instead of {name}")
    return value
