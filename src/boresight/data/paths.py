"""Images given by path in stored rows: the folder that paths start from, and must not leave."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from boresight.data.faithful import values_of, with_column
from boresight.data.image_columns import IMAGE_COLUMNS
from boresight.data.json_text import parsed_columns
from boresight.data.opener import local_path, shown, written_bytes
from boresight.data.schema import CONVERSATION_COLUMNS, IMAGE_KEYS, map_images
from boresight.errors import DataError, ImageError


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """The folder that paths in stored rows are taken from.

    A path must stay inside it, or inside the working directory, after links, `..`, `~` and encoded characters are resolved: rows from
    elsewhere cannot name any file of this machine.
    """

    folder: Path
    source: str
    """The file, folder or data set that names the images, for errors."""
    follows_links: bool = False
    """Whether links inside the folder may lead anywhere: the user named the folder himself."""
    trusted: tuple[Path, ...] = ()
    """Further folders in which images may lie."""

    def __call__(self, record: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The record with its paths made absolute. Conversations and lists of images stored as JSON text are parsed.

        Raises:
            ImageError: a path leads out of the folder.
        """
        where = f"row {index}"
        with suppress(DataError):  # what cannot be parsed names no image, and is an error of its row when that is read
            record = parsed_columns(record, where)
        return map_images(record, lambda value: self.located(value, where))

    def located(self, value: Any, where: str) -> Any:
        """An image's value, its path made absolute; any other value as it is.

        Raises:
            ImageError: the path leads out of the folder.
        """
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path") is not None:
            return {**value, "path": self.located(value["path"], where)}
        if not isinstance(value, str):
            return value
        try:
            if written_bytes(value, where) is not None:
                return value
            path = local_path(value, where)
        except ImageError:  # no path at all: an error of its row when that is read
            return value
        candidates = [os.path.normpath(start / path) for start in (self.folder, Path.cwd())]
        for candidate in candidates:
            if os.path.lexists(candidate) and self._allows(candidate):
                return candidate
        if not self._allows(candidates[0]):
            raise ImageError(
                f"{where}: the image's path {shown(value)} leads out of {self.folder}, where {self.source} keeps its images. Move the "
                "image there, or name a folder that holds them all with --image_root (load_rows: image_root=…)."
            )
        return candidates[0]

    def _allows(self, path: str) -> bool:
        folders = _resolved((self.folder, *_working_directory(), *self.trusted))
        if self.follows_links and _is_inside(path, os.path.normpath(self.folder)):
            return True
        real = os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))  # noqa: PTH118, PTH119, PTH120
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        return any(_is_inside(real, folder) for folder in folders)


def located(
    records: Any, folder: Path, source: str, image_root: str | Path | None = None, trusted: Sequence[Path] = ()
) -> Any:
    """Stored records, the paths of their images made absolute.

    Args:
        folder: of the table.
        source: what an error calls the table.
        image_root: the folder that paths start from, instead of the table's. Links inside it are followed anywhere.
        trusted: further folders in which images may lie.

    Raises:
        ImageError: a path leads out of the folder; the row is named.
        DataError: there is no such folder, or it has no effect.
    """
    folder = folder if image_root is None else Path(image_root).expanduser()
    if not folder.is_dir():
        raise DataError(f"--image_root {image_root}: there is no such folder (looked in {Path.cwd()}).")
    root = ImageRoot(folder.absolute(), source, follows_links=image_root is not None, trusted=tuple(trusted))
    if isinstance(records, datasets.IterableDataset):
        return undecoded_stream(records).map(root, with_indices=True)
    names = [name for name in records.column_names if name in (*IMAGE_COLUMNS, *CONVERSATION_COLUMNS)]
    names = [name for name in names if _names_files(records, name)]
    if image_root is not None and not names:
        raise DataError(
            f"--image_root has no effect: {source} has no column 'image' or 'images' with paths, only "
            f"{', '.join(records.column_names)}. Name the column with --image_column."
        )
    for name in names:
        values = values_of(undecoded_column(records, name), name)
        found = [root({name: value}, index)[name] for index, value in enumerate(values)]
        if found != values:
            records = with_column(records, name, found)
    return records


def undecoded_column(records: Any, name: str) -> Any:
    """The records, the images of a column left encoded."""
    feature = undecoded((records.features or {}).get(name))
    return records if feature == (records.features or {}).get(name) else records.cast_column(name, feature)


def undecoded(feature: Any) -> Any:
    """The feature, its images left encoded."""
    match feature:
        case datasets.Image():
            return datasets.Image(mode=feature.mode, decode=False)
        case datasets.LargeList():
            return datasets.LargeList(undecoded(feature.feature))
        case datasets.List():
            return datasets.List(undecoded(feature.feature), length=feature.length)
        case dict():
            return {key: undecoded(item) for key, item in feature.items()}
    return feature


def undecoded_stream(records: datasets.IterableDataset, also: Collection[str] = ()) -> datasets.IterableDataset:
    """The records, the images of their columns left encoded: what changes a stream's rows would decode and compress them again.

    Args:
        also: further columns of images.
    """
    for name, feature in (records.features or {}).items():
        if name in (*IMAGE_COLUMNS, *CONVERSATION_COLUMNS, *also) and undecoded(feature) != feature:
            records = records.cast_column(name, undecoded(feature))
    return records


def _names_files(records: datasets.Dataset, name: str) -> bool:
    """Whether values of the column may be paths. Only the presence of values is read, no image."""
    key = "image" if name in IMAGE_COLUMNS else None
    return any(_holds_paths(chunk, key) for chunk in records.data.column(name).chunks)


def _holds_paths(array: Any, key: str | None) -> bool:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return array.null_count < len(array)
    if pa.types.is_struct(kind):
        fields = {field.name: child for field, child in zip(kind, array.flatten(), strict=True)}
        if {"bytes", "path"} <= fields.keys():
            missing, named = (
                values.to_numpy(zero_copy_only=False)
                for values in (fields["bytes"].is_null(), fields["path"].is_valid())
            )
            return bool((missing & named).any())
        return any(
            _holds_paths(child, name if name in (*IMAGE_KEYS, "image_url") else key) for name, child in fields.items()
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_paths(array.flatten(), key)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return False
    if key is not None:
        return array.null_count < len(array)
    return any(text.as_py().lstrip().startswith("[") for text in array if text.is_valid)  # a conversation as JSON text


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@lru_cache(maxsize=64)
def _resolved(folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(os.path.realpath(folder) for folder in folders)


def _working_directory() -> tuple[Path, ...]:
    """The working directory, which also may hold images; not where it is the root of all files."""
    here = Path.cwd()
    return () if here == here.parent else (here,)


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
