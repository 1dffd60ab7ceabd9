"""Rows stored in files, in folders and on the hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import datasets.config
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from boresight.data import tables
from boresight.data.columns import column_names, renamed
from boresight.data.paths import located
from boresight.errors import DataError, SplitError, nearest
from boresight.files import missing_path

_READERS = (*tables.SUFFIXES, ".parquet")
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
_FILE_COLUMNS = {"file_name": "image", "file_names": "images"}
"""The columns of a folder of images that name its files → ours."""
_SLICE = re.compile(r"([^\[\]]+)\[(.*)\]")
_BUILDERS = ("csv", "json", "parquet")
"""Names of kinds of tables that `datasets.load_dataset` takes with data_files; here such files are read as any others are."""

DataFiles = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Paths or patterns of files, or those of each split by its name."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is asked of a file, a folder or a hub id."""

    split: str | Sequence[str] | None = None
    name: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    image_root: str | Path | None = None
    streaming: bool = False
    data_dir: str | None = None
    data_files: DataFiles | None = None

    @property
    def names_files(self) -> bool:
        """Whether only some files of the source are asked for."""
        return self.data_dir is not None or self.data_files is not None


def stored_rows(source: str, reading: Reading) -> Any:
    """The rows of a file, a folder or a data set of the hub.

    Raises:
        DataError: nothing is there, it cannot be read, or the split or a column does not exist.
        ImageError: the path of an image leads out of the folder.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path = path if reading.data_dir is None else path / reading.data_dir
        return _named_files(path, path, source, reading) if reading.data_files is not None else _folder(path, reading)
    if path.is_file() and reading.names_files:
        raise DataError(
            f"{source} is a file, so data_dir and data_files have no effect. Name its folder, or leave them out."
        )
    if source in _BUILDERS and reading.names_files:
        return _built(source, reading)
    if path.is_file():
        return _table(_read({"train": [path]}, reading.streaming), path.parent, source, reading)
    if (missing := missing_path(source, _READERS)) is not None:
        raise DataError(f"There is no file or folder {source!r} {missing}")
    try:
        builder = datasets.load_dataset_builder(
            source, reading.name, data_dir=reading.data_dir, data_files=reading.data_files
        )  # pyright: ignore[reportArgumentType]
        splits: Any = built_rows(builder, streaming=reading.streaming)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(f"There is no file, folder or reachable hub data set {source!r}: {error}") from error
    caches = (Path(datasets.config.HF_CACHE_HOME), Path(datasets.config.HF_DATASETS_CACHE))
    return _stored(take_split(splits, reading.split, source), Path.cwd(), source, reading, caches)


def built_rows(builder: datasets.DatasetBuilder, *, streaming: bool) -> Any:
    """The splits of a data set of the hub. Tables are read as text, as files on a disk are."""
    if (files := _text_tables(builder)) is not None:
        return _read(files, streaming)
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


def _text_tables(builder: datasets.DatasetBuilder) -> dict[str, list[Path]] | None:
    """The files of a data set of CSV or JSON tables by their split, downloaded; None for other kinds, and where the data set's card says
    how `datasets` is to read them."""
    config: Any = builder.config
    is_csv = isinstance(builder, Csv) and config.sep == ","
    is_json = isinstance(builder, Json) and config.field is None
    if not (is_csv or is_json) or config.features is not None:
        return None
    manager = datasets.DownloadManager()
    files = {
        str(split): [Path(path) for path in manager.download([str(file) for file in group])]
        for split, group in config.data_files.items()
    }
    return files if all(path.suffix in tables.SUFFIXES for group in files.values() for path in group) else None


def _folder(path: Path, reading: Reading) -> Any:
    if not path.is_dir():
        raise DataError(f"data_dir: there is no folder {str(path)!r} (looked in {Path.cwd()}).")
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        saved = datasets.load_from_disk(path)
        splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return _stored(take_split(splits, reading.split, str(path)), path, str(path), reading)
    if metadata := sorted(found for kind in _METADATA for found in path.rglob(kind) if _names_files(found)):
        splits = {split: _images(files, path, reading) for split, files in _by_split(metadata, path).items()}
        return take_split(splits, reading.split, str(path))
    files = _by_split(sorted(entry for entry in path.rglob("*") if entry.suffix in _READERS), path)
    if not files:
        raise DataError(
            f"The folder {str(path)!r} has no data: neither {', '.join(_READERS)} files, nor images with "
            f"{' or '.join(_METADATA)}."
        )
    return _table(_read(files, reading.streaming), path, str(path), reading)


def _built(kind: str, reading: Reading) -> Any:
    """Rows of the files that a kind of tables is named for, as in `load_dataset("json", data_files=…)`."""
    folder = Path(reading.data_dir or ".").expanduser()
    if reading.data_files is None:
        return _folder(folder, reading)
    return _named_files(folder, None, kind, reading)


def _named_files(folder: Path, image_folder: Path | None, source: str, reading: Reading) -> Any:
    """Rows of the files that `data_files` names, relative to a folder.

    Args:
        image_folder: where paths of images start; None: at the folder of the files.
    """
    asked = reading.data_files
    by_split = asked if isinstance(asked, Mapping) else {"train": asked}
    files = {split: _matching(folder, patterns) for split, patterns in by_split.items() if patterns}
    if not files:
        raise DataError("data_files names no file.")
    parents = {file.parent for group in files.values() for file in group}
    start = image_folder or Path(os.path.commonpath(parents))
    return _table(_read(files, reading.streaming), start, source, reading)


def _matching(folder: Path, patterns: Any) -> list[Path]:
    """The files of some paths and patterns, in order.

    Raises:
        DataError: there is none for one of them.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "://" in pattern:
            raise DataError(f"data_files: {pattern} is not on this machine. Download it, and give its path.")
        path = folder / Path(pattern).expanduser()
        matches = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        matches = [match for match in matches if match.is_file()]
        if not matches:
            near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DataError(
                f"data_files: no file matches {pattern!r} (looked in {folder.absolute()}).{nearest(path.name, near)}"
            )
        found |= dict.fromkeys(matches)
    return list(found)


def _by_split(files: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """The files by the split that their name, or that of a folder, states."""
    found: dict[str, list[Path]] = {}
    for file in files:
        names = [
            file.stem,
            *(parent.name for parent in file.parents if parent.is_relative_to(folder) and parent != folder),
        ]
        words = [word for name in names for word in name.lower().replace("_", "-").split("-")]
        found.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), "train"), []).append(file)
    return found


def _names_files(metadata: Path) -> bool:
    """Whether the table has the column that makes a folder of images a data set; any other is an ordinary table."""
    with metadata.open("rb") as stream:
        return b"file_name" in stream.readline() or metadata.suffix == ".parquet"


def _images(metadata: Sequence[Path], folder: Path, reading: Reading) -> Any:
    """Rows of a folder of images: each table names files beside it."""
    parts = []
    for file in metadata:
        records = _read({"train": [file]}, reading.streaming)["train"]
        named = {theirs: ours for theirs, ours in _FILE_COLUMNS.items() if theirs in column_names(records)}
        records = renamed(records.rename_columns(named), reading.columns, str(file))
        parts.append(located(records, file.parent, str(file), reading.image_root))
    try:
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except ValueError as error:
        raise DataError(f"The tables of the image folder {str(folder)!r} have different columns: {error}") from error


def _read(files: Mapping[str, Sequence[Path]], streaming: bool) -> Any:
    paths = [path for group in files.values() for path in group]
    kinds = {path.suffix for path in paths}
    if len(kinds) > 1 or not kinds <= set(_READERS):
        shown = ", ".join(path.name for path in paths[:5])
        raise DataError(f"{shown}: data files must be of one kind, one of {', '.join(_READERS)}.")
    if kinds != {".parquet"}:
        return {split: tables.read_table(group, streaming=streaming) for split, group in files.items()}
    try:
        return datasets.load_dataset(
            "parquet",
            data_files={split: [str(path) for path in group] for split, group in files.items()},
            streaming=streaming,
        )  # pyright: ignore[reportArgumentType]
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(
            f"{', '.join(path.name for path in paths)} cannot be read: {error.__cause__ or error}"
        ) from error


def _table(splits: Any, folder: Path, source: str, reading: Reading) -> Any:
    """Rows of data files, with their columns' names and their images' paths put right."""
    records = renamed(take_split(splits, reading.split, source), reading.columns, source)
    return located(records, folder, source, reading.image_root)


def _stored(records: Any, folder: Path, source: str, reading: Reading, trusted: Sequence[Path] = ()) -> Any:
    """Rows of a data set that may hold its images, or name files."""
    records = renamed(records, reading.columns, source)
    return located(records, folder, source, reading.image_root, trusted)


def take_split(splits: Any, split: str | Sequence[str] | None, source: str) -> Any:
    """One split of several, or a part of it.

    Args:
        split: its name, or a part such as ``train[:1000]``; of several names the first that there is. None: the only one, or ``train``.

    Raises:
        SplitError, DataError: there is no such split, or the part cannot be read.
    """
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
