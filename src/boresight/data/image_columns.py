"""The columns that hold a row's images, and columns that look as if they did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from boresight.data.images import load_image
from boresight.errors import DataError, ImageError, nearest
from boresight.types import EncodedImage

IMAGE_COLUMNS = ("image", "images")

_OTHER_MEDIA = {"video": "video", "videos": "video", "audio": "audio", "audios": "audio"}
_LIKE_AN_IMAGE = re.compile(r"im(age|g)|pict?|photo|figure|screenshot", re.IGNORECASE)
_VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def column_images(record: Mapping[str, Any], where: str) -> list[EncodedImage]:
    """The images of a record's image column.

    Raises:
        ImageError: an image cannot be used, both columns hold images, or a column of another name holds the only ones.
        DataError: the record has a video or a sound.
    """
    for name, kind in _OTHER_MEDIA.items():
        if not is_empty(record.get(name)):
            raise DataError(
                f"{where}: the column {name!r} holds {kind}, which is not supported; only text and images are. Drop the row, or the column "
                "to train without it on purpose."
            )
    given = [name for name in IMAGE_COLUMNS if not is_empty(record.get(name))]
    if len(given) == 2:
        raise ImageError(f"{where}: both 'image' and 'images' hold images. Keep one of the two columns.")
    if not given:
        _check_other_columns(record, where)
        return []
    value = _images(record[given[0]], f"{where}, {given[0]}")
    if isinstance(value, list):
        return [load_image(item, where=f"{where}, {given[0]}[{place}]") for place, item in enumerate(value)]
    return [load_image(value, where=f"{where}, {given[0]}")]


def _images(value: Any, where: str) -> Any:
    """The value of an image column: a list where there are several."""
    # Older versions of `datasets` store a list of images as a mapping of lists.
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), list):
        paths = value.get("path") or [None] * len(value["bytes"])
        if not isinstance(paths, list | tuple) or len(paths) != len(value["bytes"]):
            raise ImageError(
                f"{where}: 'bytes' lists {len(value['bytes'])} images, and 'path' is not a list of as many."
            )
        return [{"bytes": data, "path": path} for data, path in zip(value["bytes"], paths, strict=True)]
    return list(value) if isinstance(value, tuple) else value


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: None, blank text, an empty list, a list of nothing, or a mapping of nothing."""
    match value:
        case None:
            return True
        case str():
            return not value.strip()
        case list() | tuple():
            return len(value) == 0
        case Mapping():
            return value.keys() == {"bytes", "path"} and value["bytes"] is None and value["path"] is None
    return False


def looks_like(value: Any) -> str | None:
    """`image` or `video` where a cell holds one or names the file of one; else None. A list counts by its first item."""
    item = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(item, Image.Image | EncodedImage) or (
        isinstance(item, Mapping) and item.keys() == {"bytes", "path"} and not is_empty(item)
    ):
        return "image"
    if isinstance(item, bytes):
        return "image"
    if isinstance(item, str) and len(item) < 1024:
        suffix = f".{item.rpartition('.')[2].lower()}"
        if suffix in _VIDEO_SUFFIXES:
            return "video"
        return "image" if suffix in Image.registered_extensions() and suffix != ".mpg" else None
    return None


def _check_other_columns(record: Mapping[str, Any], where: str) -> None:
    """Raise if a column of another name holds images and the record has no image column: they would be ignored."""
    if any(name in record for name in IMAGE_COLUMNS):
        return
    for name, value in record.items():
        is_text = isinstance(value[0] if isinstance(value, list | tuple) and value else value, str)
        is_named = bool(_LIKE_AN_IMAGE.search(name)) or bool(nearest(name.lower(), IMAGE_COLUMNS))
        if looks_like(value) == "image" and (is_named or not is_text):
            raise ImageError(
                f"{where}: the column {name!r} holds an image, but images are read from 'image' or 'images'. "
                "Rename it (or add an 'images' column of None, to train without images on purpose)."
            )
