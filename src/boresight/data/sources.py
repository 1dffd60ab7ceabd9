"""Where records come from: objects, files, folders and the hub, all as one kind of data set of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow
import torch.utils.data
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from boresight.data.images import load_picture
from boresight.data.schema import PICTURE_COLUMNS, TEXT_COLUMNS, map_pictures, read_row
from boresight.errors import DataError, nearest
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
_MAX_NAMED = 10


def load_rows(source: Any, *, split: str | None = None, name: str | None = None) -> Records:
    """The records of `source`.

    Args:
        source: a `datasets` object (map-style or iterable, or a dictionary of splits), a list of mappings, the path
            of a JSON, JSON Lines, Parquet or CSV file, a folder (saved by `save_to_disk`, of pictures with a
            ``metadata.csv`` or ``metadata.jsonl``, or of data files), or a hub id. Relative paths of pictures are
            taken from the file's folder where they exist there.
        split: which split to take where there are several. None takes the only one, or ``train``.
        name: the hub data set's configuration.

    Raises:
        DataError: nothing is there, it cannot be read, or the split does not exist.
    """
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        return _split(source, split, "the data set")
    if isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return source
    if isinstance(source, str | Path):
        return _named(str(source), split, name)
    if isinstance(source, Sequence):
        return [_encoded_once(record, index) for index, record in enumerate(source)]
    raise DataError(
        f"A {type(source).__name__} is no data set. Give a datasets object, a list of mappings, a file, a folder, "
        "or a hub id."
    )


class RowDataset(torch.utils.data.Dataset[Row]):
    """Records as rows, read when asked for; pictures stay encoded.

    Columns of `datasets.Image` features that hold a row's pictures are read without decoding them, and nothing is
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
            if column in (*PICTURE_COLUMNS, *TEXT_COLUMNS) and _encoded(feature) != feature:
                self.records = self.records.cast_column(column, _encoded(feature))

    def __iter__(self) -> Iterator[Row]:
        for index, record in enumerate(self.records):
            yield read_row(record, index)


def check_rows(records: Records, *, limit: int | None = None, check: Callable[[Row], object] | None = None) -> int:
    """Reads every row, or the first `limit`, before training starts; of pictures the header alone. Returns how many
    were read.

    Args:
        records: what `load_rows` returned.
        limit: None is all of them.
        check: called with every row, to raise what else may be wrong with it (`Encoder.count_tokens` knows the
            template's rules).

    Raises:
        DataError: some rows are bad. The first ten are named, with what is wrong and what to do; all are counted.
    """
    rows = RowStream(records) if isinstance(records, datasets.IterableDataset) else RowDataset(records)
    bad: list[str] = []
    num_read = 0
    for outcome in islice(_outcomes(rows, check), limit):
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


def _named(source: str, split: str | None, name: str | None) -> Records:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, split)
    if path.is_file():
        return _resolved(_split(_read({"train": [path]}), None, source), path.parent)
    looks_local = path.suffix in _READERS or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"There is no file or folder {source!r} (looked in {Path.cwd()}).{nearest(path.name, siblings)}"
        )
    try:
        return _split(datasets.load_dataset(source, name), split, source)
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"There is no file, folder or reachable hub data set {source!r}: {error}") from error


def _folder(path: Path, split: str | None) -> Records:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(path)
        return _split(saved, split, str(path)) if isinstance(saved, datasets.DatasetDict) else saved
    if any(list(path.rglob(metadata)) for metadata in _METADATA):
        try:
            return _split(datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=True), split, str(path))
        except (OSError, ValueError, DatasetGenerationError) as error:
            raise DataError(f"The picture folder {str(path)!r} cannot be read: {error.__cause__ or error}") from error
    files: dict[str, list[Path]] = {}
    for file in sorted(entry for entry in path.rglob("*") if entry.suffix in _READERS):
        words = file.stem.lower().replace("_", "-").split("-")
        files.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "train"), []).append(file)
    if not files:
        raise DataError(
            f"The folder {str(path)!r} has no data: neither {', '.join(_READERS)} files, nor pictures with "
            f"{' or '.join(_METADATA)}."
        )
    return _resolved(_split(_read(files), split, str(path)), path)


def _read(files: Mapping[str, Sequence[Path]]) -> datasets.DatasetDict:
    paths = [path for group in files.values() for path in group]
    kinds = {_READERS.get(path.suffix, "") for path in paths}
    if len(kinds) > 1 or "" in kinds:
        shown = ", ".join(path.name for path in paths[:5])
        raise DataError(f"{shown}: data files must be of one kind, one of {', '.join(_READERS)}.")
    try:
        return datasets.load_dataset(
            kinds.pop(), data_files={split: [str(path) for path in group] for split, group in files.items()}
        )  # pyright: ignore[reportArgumentType, reportReturnType]
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(
            f"{', '.join(path.name for path in paths)} cannot be read: {error.__cause__ or error}"
        ) from error


def _split(splits: Any, split: str | None, source: str) -> Any:
    if split is None:
        if len(splits) == 1:
            return next(iter(splits.values()))
        if "train" in splits:
            return splits["train"]
        raise DataError(f"{source} has the splits {', '.join(splits)} and none is 'train': name one.")
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}, only {', '.join(splits)}.{nearest(split, splits)}")
    return splits[split]


def _resolved(records: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Relative picture paths made absolute, where the file's folder has them."""
    if not any(_holds_paths(records.features[column], column in PICTURE_COLUMNS) for column in records.features):
        return records
    change = partial(_beside, folder=folder.resolve())
    return records.map(partial(map_pictures, change=change), features=records.features, desc="picture paths")


def _beside(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path") is not None:
        return {**value, "path": _beside(value["path"], folder)}
    if isinstance(value, str) and "://" not in value and (folder / value).is_file():
        return str(folder / value)
    return value


def _holds_paths(feature: Any, is_picture: bool) -> bool:
    """Whether strings in this feature may be paths of pictures."""
    match feature:
        case datasets.Value():
            return is_picture and feature.dtype in ("string", "large_string")
        case datasets.List() | datasets.LargeList():
            return _holds_paths(feature.feature, is_picture)
        case dict():
            return any(
                _holds_paths(item, is_picture or key in ("image", "path", "url")) for key, item in feature.items()
            )
    return type(feature).__name__ == "Json"


def _encoded_features(features: datasets.Features) -> datasets.Features:
    columns = (*PICTURE_COLUMNS, *TEXT_COLUMNS)
    return datasets.Features({name: _encoded(item) if name in columns else item for name, item in features.items()})


def _encoded(feature: Any) -> Any:
    """The feature, its pictures left encoded."""
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
        return load_picture(value, where=f"row {index}") if isinstance(value, Image.Image) else value

    return map_pictures(record, encoded)
