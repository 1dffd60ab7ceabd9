"""CSV, TSV, JSON and JSON Lines files, read without guessing: a cell of text reaches the row as it was written.

In CSV and TSV every cell is text, and a blank cell is the empty text. In JSON every value has the type that JSON gives it. Nothing is taken
for a date, a number or a missing value because of how it looks.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetGenerationError

from boresight.data.faithful import common_kind, feature_of, kind_of, stored
from boresight.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".json", ".jsonl")

_VERSION = 1
"""Of what is written to the cache of `datasets`. Raise it when the same file is to be read differently."""

File = tuple[str, int, int]
"""Path, size and time of change: a file that has changed is read again."""


def read_table(paths: Sequence[Path], *, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """The rows of some files of one kind, one file after another.

    Args:
        paths: files that end in `SUFFIXES`.
        streaming: read rows as they are needed. Otherwise they are written once to the cache of `datasets`, and read from there.

    Raises:
        DataError: a file cannot be read; the message names its line and what is wrong with it.
    """
    files: list[File] = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    is_csv = paths[0].suffix in DELIMITERS
    if streaming:
        features = _csv_features(paths) if is_csv else None
        return datasets.IterableDataset.from_generator(_streamed, features=features, gen_kwargs={"files": files})
    kinds = dict.fromkeys(_csv_columns(paths), "string") if is_csv else _json_kinds(paths)
    if not kinds:
        raise DataError(f"{', '.join(path.name for path in paths)}: there is no row.")
    try:
        return datasets.Dataset.from_generator(
            _written,
            features=datasets.Features({name: feature_of(kind) for name, kind in kinds.items()}),
            gen_kwargs={"files": files, "kinds": kinds, "version": _VERSION},
        )  # pyright: ignore[reportReturnType]
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise DataError(f"{', '.join(path.name for path in paths)} cannot be read: {error.__cause__}") from error


def _streamed(files: Sequence[File]) -> Iterator[dict[str, Any]]:
    for path, *_ in files:
        yield from _records(Path(path))


def _written(files: Sequence[File], kinds: Mapping[str, str], version: int) -> Iterator[dict[str, Any]]:
    """The rows as their columns are stored. `version` is part of the key of the cache."""
    for row, record in enumerate(_streamed(files)):
        try:
            yield {name: stored(record.get(name), kind) for name, kind in kinds.items()}
        except DataError as error:
            raise DataError(f"row {row}: {error}") from error


def _records(path: Path) -> Iterator[dict[str, Any]]:
    reader = _csv_records if path.suffix in DELIMITERS else _json_records
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}.") from error


# ---- CSV and TSV ------------------------------------------------------------------------------------------------------------------------


def _csv_features(paths: Sequence[Path]) -> datasets.Features:
    return datasets.Features(dict.fromkeys(_csv_columns(paths), datasets.Value("string")))


def _csv_columns(paths: Sequence[Path]) -> list[str]:
    names: dict[str, None] = {}
    for path in paths:
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                names |= dict.fromkeys(_header(_csv_reader(stream, path), path))
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name} is not UTF-8 ({error.reason}): save it as UTF-8.") from error
    return list(names)


def _csv_reader(stream: Any, path: Path) -> Any:
    csv.field_size_limit(2**31 - 1)  # of the process: an image as text is longer than Python's own limit
    return csv.reader(stream, delimiter=DELIMITERS[path.suffix], strict=True)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        cells = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{path.name}, line 1: {error}.") from error
    names = [name or f"Unnamed: {place}" for place, name in enumerate(cells)]  # the index that pandas writes
    if not names:
        raise DataError(f"{path.name} is empty: its first line must name the columns.")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{path.name}: two columns are called {twice[0]!r}. Rename one of them.")
    return names


def _csv_records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = _csv_reader(stream, path)
        names = _header(reader, path)
        try:
            for number, cells in enumerate(cells for cells in reader if cells):
                if len(cells) != len(names):
                    raise DataError(
                        f"{path.name}, row {number} (line {reader.line_num}): {len(cells)} cells, but the first line names "
                        f"{len(names)} columns ({', '.join(names)}). Put quotes around a cell that contains {reader.dialect.delimiter!r}."
                    )
                yield dict(zip(names, cells, strict=True))
        except csv.Error as error:
            raise DataError(
                f"{path.name}, line {reader.line_num}: {error}. Write a quote inside a quoted cell twice, and close every quote."
            ) from error


# ---- JSON and JSON Lines ----------------------------------------------------------------------------------------------------------------


def _json_kinds(paths: Sequence[Path]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for path in paths:
        for record in _records(path):
            for name, value in record.items():
                kinds[name] = common_kind(kinds.get(name, "nothing"), kind_of(value))
    return kinds


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of the file: one on each line, or all in one list, or in the only list of one object."""
    with path.open(encoding="utf-8-sig") as stream:
        first = next((line for line in stream if line.strip()), "")
        stream.seek(0)
        if path.suffix == ".jsonl" or (first.lstrip().startswith("{") and _is_json(first)):
            values = ((_parsed(line, path, number), f"line {number}") for number, line in _lines(stream))
        else:
            values = (
                (value, f"row {place}") for place, value in enumerate(_listed(_parsed(stream.read(), path), path))
            )
        for value, where in values:
            if not isinstance(value, dict):
                raise DataError(f"{path.name}, {where}: a row is an object with columns, not a {type(value).__name__}.")
            yield {name: _checked(item, path, where) for name, item in value.items()}


def _lines(stream: Any) -> Iterator[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(stream, 1) if line.strip())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parsed(text: str, path: Path, number: int = 1) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1) + number - 1
        raise DataError(f"{path.name}, line {line}: this is not JSON ({error}).") from error


def _listed(value: Any, path: Path) -> list[Any]:
    lists = list(value.values()) if isinstance(value, dict) and len(value) == 1 else [value]
    if not isinstance(lists[0], list):
        raise DataError(
            f"{path.name}: the file holds one {type(value).__name__}. Write a list of rows, or one row on each line (JSON Lines)."
        )
    return lists[0]


def _checked(value: Any, path: Path, where: str) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path.name}, {where}: the text {value[:40]!r} has half a character (a lone surrogate): remove it."
            ) from error
    return value
