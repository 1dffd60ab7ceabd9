"""Where records come from: objects, files, folders and the hub, all as one kind of data set of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
import torch.utils.data
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from boresight.data.columns import renamed
from boresight.data.images import load_image
from boresight.data.paths import located
from boresight.data.schema import IMAGE_COLUMNS, TEXT_COLUMNS, map_images, read_row
from boresight.errors import DataError, SplitError, nearest
from boresight.types import Row

Records = datasets.Dataset | datasets.IterableDataset | Sequence[Mapping[str, Any]]
"""What holds records: a `datasets` object, or a list of mappings, which stays a list."""

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_SPLITS = {
    "train": "train",
    "test": "test",
    "eval": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SLICE = re.compile(r"([^\[\]]+)\[(.*)\]")
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Reading:
    """What is asked of a file, a folder or a hub id."""

    split: str | Sequence[str] | None = None
    name: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    image_root: str | Path | None = None
    streaming: bool = False


def load_rows(source: Any, *, split: str | Sequence[str] | None = None, **reading: Any) -> Records:
    """The records of `source`.

    Args:
        source: a `datasets` object (map-style or iterable, or a dictionary of splits), a list of mappings, the path
            of a JSON, JSON Lines, Parquet or CSV file, a folder (saved by `save_to_disk`, of images with a
            ``metadata.csv`` or ``metadata.jsonl``, or of data files), or a hub id. Relative paths of images are
            taken from the file's folder where they exist there.
        split: which split to take where there are several, or which part of one, such as ``train[:1000]``. Of several names,
            the first that there is, where there is more than one. None takes the only one, or ``train``.
        reading: of a file, a folder or a hub id only: `name`, the hub data set's configuration; `columns`, our name of
            a column → the data set's; `image_root`, where paths of images start; `streaming`, to read rows as they come.

    Raises:
        DataError: nothing is there, it cannot be read, or the split or a column does not exist.
    """
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        return _split(source, split, "the data set")
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return source
    if isinstance(source, str | Path):
        return _named(str(source), Reading(split, **reading))
    if isinstance(source, Sequence):
        return [_encoded_once(record, index) for index, record in enumerate(source)]
    raise DataError(
        f"A {type(source).__name__} is no data set. Give a datasets object, a list of mappings, a file, a folder, "
        "or a hub id."
    )


class RowDataset(torch.utils.data.Dataset[Row]):
    """Records as rows, read when asked for; images stay encoded.

    Columns of `datasets.Image` features that hold a row's images are read without decoding them, and nothing is
    rewritten on disk. A user's own transform (`with_transform`) is respected.
    """

    def __init__(self, records: datasets.Dataset | Sequence[Mapping[str, Any]]) -> None:
        self.records = records
        self._raw: datasets.Dataset | None = None
        if isinstance(records, datasets.Dataset) and records.format["type"] is None:
            self._features = _encoded_features(records.features)
            self._raw = records.with_format("arrow")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        if self._raw is None:
            return read_row(self.records[index], index)
        record = cast("pyarrow.Table", self._raw[index]).to_pylist()[0]
        return read_row(self._features.decode_example(record), index)


class RowStream(torch.utils.data.IterableDataset[Row]):
    """The records of an iterable data set as rows, numbered as they come (in each worker of its own)."""

    def __init__(self, records: datasets.IterableDataset) -> None:
        self.records = records
        for column, feature in (records.features or {}).items():
            if column in (*IMAGE_COLUMNS, *TEXT_COLUMNS) and _encoded(feature) != feature:
                self.records = self.records.cast_column(column, _encoded(feature))

    def __iter__(self) -> Iterator[Row]:
        for index, record in enumerate(self.records):
            yield read_row(record, index)


def check_rows(records: Records, *, check: Callable[[Row], object] | None = None) -> int:
    """Read every row before training starts; of images the header alone.

    Args:
        records: what `load_rows` returned.
        check: called with every row; it raises a DataError for what else may be wrong (`Encoder.count_tokens` knows the template's
            rules).

    Returns:
        How many rows were read.

    Raises:
        DataError: some rows are bad. The message counts them, and says of the first ten what is wrong and what to do.
    """
    rows = RowStream(records) if isinstance(records, datasets.IterableDataset) else RowDataset(records)
    bad: list[str] = []
    num_read = 0
    for outcome in _outcomes(rows, check):
        num_read += 1
        if outcome is not None:
            bad.append(str(outcome))
    if bad:
        rest = [f"… and {len(bad) - _MAX_NAMED} more."] if len(bad) > _MAX_NAMED else []
        raise DataError("\n".join([f"{len(bad)} of {num_read} rows cannot be used:", *bad[:_MAX_NAMED], *rest]))
    if num_read == 0:
        raise DataError("The data set has no rows.")
    return num_read


def _outcomes(rows: RowDataset | RowStream, check: Callable[[Row], object] | None) -> Iterator[DataError | None]:
    """For every row, what is wrong with it."""
    if isinstance(rows, RowDataset):
        reads = (partial(rows.__getitem__, index) for index in range(len(rows)))
    else:
        reads = (partial(read_row, record, index) for index, record in enumerate(rows.records))
    for read in reads:
        try:
            row = read()
            if check is not None:
                check(row)
        except DataError as error:
            yield error
        else:
            yield None


def _named(source: str, reading: Reading) -> Records:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, reading)
    if path.is_file():
        return _table(_read({"train": [path]}, reading.streaming), path.parent, source, reading)
    looks_local = path.suffix in _READERS or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"There is no file or folder {source!r} (looked in {Path.cwd()}).{nearest(path.name, siblings)}"
        )
    try:
        splits = datasets.load_dataset(source, reading.name, streaming=reading.streaming)
    except (OSError, ValueError) as error:
        raise DataError(f"There is no file, folder or reachable hub data set {source!r}: {error}") from error
    return _stored(_split(splits, reading.split, source), source, reading)


def _folder(path: Path, reading: Reading) -> Records:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return _stored(_split(splits, reading.split, str(path)), str(path), reading)
    if metadata := [found for kind in _METADATA for found in path.rglob(kind) if _names_files(found)]:
        try:
            splits = datasets.load_dataset(
                "imagefolder", data_dir=str(path), drop_labels=True, streaming=reading.streaming
            )
        except (OSError, ValueError, DatasetGenerationError) as error:
            raise DataError(f"The image folder {str(path)!r} cannot be read: {error.__cause__ or error}") from error
        return _stored(_split(splits, reading.split, str(metadata[0])), str(path), reading)
    files: dict[str, list[Path]] = {}
    for file in sorted(entry for entry in path.rglob("*") if entry.suffix in _READERS):
        words = file.stem.lower().replace("_", "-").split("-")
        files.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "train"), []).append(file)
    if not files:
        raise DataError(
            f"The folder {str(path)!r} has no data: neither {', '.join(_READERS)} files, nor images with "
            f"{' or '.join(_METADATA)}."
        )
    return _table(_read(files, reading.streaming), path, str(path), reading)


def _names_files(metadata: Path) -> bool:
    """Whether the table has the column that makes a folder of images a data set; any other is an ordinary table."""
    with metadata.open("rb") as stream:
        return b"file_name" in stream.readline() or metadata.suffix == ".parquet"


def _read(files: Mapping[str, Sequence[Path]], streaming: bool) -> Any:
    paths = [path for group in files.values() for path in group]
    kinds = {_READERS.get(path.suffix, "") for path in paths}
    if len(kinds) > 1 or "" in kinds:
        shown = ", ".join(path.name for path in paths[:5])
        raise DataError(f"{shown}: data files must be of one kind, one of {', '.join(_READERS)}.")
    try:
        return datasets.load_dataset(
            kinds.pop(),
            data_files={split: [str(path) for path in group] for split, group in files.items()},
            streaming=streaming,
        )  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(
            f"{', '.join(path.name for path in paths)} cannot be read: {error.__cause__ or error}"
        ) from error


def _table(splits: Any, folder: Path, source: str, reading: Reading) -> Any:
    """Rows of data files, with their columns' names and their images' paths put right."""
    records = renamed(_split(splits, reading.split, source), reading.columns, source)
    return located(records, folder, source, reading.image_root)


def _stored(records: Any, source: str, reading: Reading) -> Any:
    """Rows that hold their images themselves."""
    records = renamed(records, reading.columns, source)
    return records if reading.image_root is None else located(records, Path(), source, reading.image_root)


def _split(splits: Any, split: str | Sequence[str] | None, source: str) -> Any:
    if not isinstance(split, str):
        if len(splits) == 1:
            return next(iter(splits.values()))
        if found := [name for name in split or ("train",) if name in splits]:
            return splits[found[0]]
        raise DataError(
            f"{source} has the splits {', '.join(splits)} and none is {' or '.join(map(repr, split or ('train',)))}: name one."
        )
    name, part = _SLICE.fullmatch(split).groups() if _SLICE.fullmatch(split) else (split, None)  # pyright: ignore[reportOptionalMemberAccess]
    if name not in splits:
        raise SplitError(f"{source} has no split {name!r}, only {', '.join(splits)}.{nearest(name, splits)}")
    return splits[name] if part is None else _part(splits[name], part, split)


def _part(records: Any, part: str, split: str) -> Any:
    """Some of the rows: ``:1000``, ``1000:``, ``10%:20%``."""
    if not isinstance(records, datasets.Dataset):
        raise DataError(f"{split}: a stream has no parts. Drop the brackets, or --dataset_streaming.")
    bounds = [bound.strip() for bound in part.split(":")]
    try:
        start, stop = (
            None if not bound else len(records) * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)
            for bound in bounds
        )
    except ValueError as error:
        raise DataError(f"{split}: write a part as train[:1000], train[1000:] or train[10%:20%].") from error
    return records.select(range(*slice(start, stop).indices(len(records))))


def _encoded_features(features: datasets.Features) -> datasets.Features:
    columns = (*IMAGE_COLUMNS, *TEXT_COLUMNS)
    return datasets.Features({name: _encoded(item) if name in columns else item for name, item in features.items()})


def _encoded(feature: Any) -> Any:
    """The feature, its images left encoded."""
    match feature:
        case datasets.Image():
            return datasets.Image(mode=feature.mode, decode=False)
        case datasets.LargeList():
            return datasets.LargeList(_encoded(feature.feature))
        case datasets.List():
            return datasets.List(_encoded(feature.feature), length=feature.length)
        case dict():
            return {key: _encoded(item) for key, item in feature.items()}
    return feature


def _encoded_once(record: Any, index: int) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"row {index}: a record is a mapping of columns, not a {type(record).__name__}.")

    def encoded(value: Any) -> Any:
        return load_image(value, where=f"row {index}") if isinstance(value, Image.Image) else value

    return map_images(record, encoded)
