"""Images given by path in a table: the folder that paths start from, and must not leave."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from boresight.data.schema import IMAGE_COLUMNS, map_images
from boresight.errors import DataError, ImageError


@dataclass(frozen=True, slots=True)
class ImageRoot:
    """The folder that paths in a table are taken from.

    A path must stay inside it, or inside the working directory: a table from elsewhere cannot name any file of this machine. Links
    that lie inside may lead anywhere.
    """

    folder: Path
    source: str
    """The file or folder that names the images, for errors."""

    def __call__(self, record: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The record with its paths made absolute, where the files are there."""
        return map_images(record, lambda value: self._located(value, index))

    def _located(self, value: Any, index: int) -> Any:
        if isinstance(value, Mapping) and value.get("bytes") is None and value.get("path") is not None:
            return {**value, "path": self._located(value["path"], index)}
        if not isinstance(value, str) or ("://" in value and not value.startswith("file://")):
            return value
        path = Path(value.removeprefix("file://")).expanduser()
        inside, here = _plain(self.folder / path), _plain(Path.cwd() / path)
        if not inside.is_relative_to(_plain(self.folder)) and not here.is_relative_to(_plain(Path.cwd())):
            raise ImageError(
                f"row {index}: the image's path {value!r} leads out of {self.folder}, where {self.source} keeps its images. Move "
                "the image there, or name a folder that holds them all with --image_root (load_rows: image_root=…)."
            )
        return str(inside) if inside.is_file() and inside.is_relative_to(_plain(self.folder)) else value


def located(records: Any, folder: Path, source: str, image_root: str | Path | None = None) -> Any:
    """Records of a table, the paths of their images made absolute where the files are there.

    Args:
        folder: of the table.
        source: what an error calls the table.
        image_root: the folder that paths start from, instead of the table's.

    Raises:
        ImageError: a path leads out of the folder; the row is named.
        DataError: there is no such folder, or it has no effect.
    """
    root = folder if image_root is None else Path(image_root).expanduser()
    if not root.is_dir():
        raise DataError(f"--image_root {image_root}: there is no such folder (looked in {Path.cwd()}).")
    features = records.features
    if features is not None and not any(_holds_paths(features[name], name in IMAGE_COLUMNS) for name in features):
        if image_root is not None:
            raise DataError(
                f"--image_root has no effect: {source} has no column 'image' or 'images' with paths, only {', '.join(features)}. "
                "Name the column with --image_column."
            )
        return records
    change = ImageRoot(root.absolute(), source)
    if isinstance(records, datasets.IterableDataset):
        return records.map(change, with_indices=True, features=features)
    return records.map(change, with_indices=True, features=features, desc="Looking for the images")


def _plain(path: Path) -> Path:
    """Absolute and without `..`, links left as they are."""
    return Path(os.path.normpath(path.absolute()))


def _holds_paths(feature: Any, is_image: bool) -> bool:
    """Whether strings in this feature may be paths of images."""
    match feature:
        case datasets.Value():
            return is_image and feature.dtype in ("string", "large_string")
        case datasets.List() | datasets.LargeList():
            return _holds_paths(feature.feature, is_image)
        case dict():
            return any(_holds_paths(item, is_image or key in ("image", "path", "url")) for key, item in feature.items())
    return type(feature).__name__ == "Json"
