"""One image: kept encoded until a worker decodes it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from PIL import Image, ImageOps, UnidentifiedImageError

from boresight.errors import ImageError
from boresight.types import EncodedImage

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError)
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def load_image(value: object, *, where: str) -> EncodedImage:
    """`value` as an image, still encoded; only its header is read.

    Args:
        value: a PIL image (encoded once, losslessly, as PNG), a path or ``file://`` address, encoded bytes, a mapping
            with ``bytes`` or ``path`` as data sets store images, or an `EncodedImage`.
        where: what an error calls it, such as ``"row 3, images[1]"``.

    Raises:
        ImageError: the image is missing, broken, too large, or of a type that is none of these.
    """
    match value:
        case EncodedImage():
            return value
        case Image.Image():
            return _from_bytes(_png(value), where)
        case bytes() | bytearray() | memoryview():
            return _from_bytes(bytes(value), where)
        case str() | Path():
            return _from_path(value, where)
        case Mapping() if value.get("bytes") is not None:
            return load_image(value["bytes"], where=where)
        case Mapping() if value.get("path") is not None:
            return load_image(value["path"], where=where)
        case None:
            raise ImageError(f"{where}: the image is missing (None). Leave the place out, or give the image.")
        case _:
            kind = f"a mapping with keys {sorted(value)}" if isinstance(value, Mapping) else type(value).__name__
            raise ImageError(
                f"{where}: {kind} is no image. Give a PIL image, a path, encoded bytes, or a mapping with 'bytes' "
                "or 'path'."
            )


def decode(image: EncodedImage, *, where: str = "image") -> Image.Image:
    """The image in RGB: rotated by its EXIF orientation, transparency over white, 16-bit grey scaled to 8.

    Raises:
        ImageError: the data ends early or is damaged, which the header does not show.
    """
    try:
        with _strict(), Image.open(_stream(image)) as opened:
            opened.load()
            return _rgb(ImageOps.exif_transpose(opened))
    except _TOO_LARGE as error:
        raise _too_large(where, error) from error
    except _BROKEN as error:
        raise ImageError(f"{where}: {_name(image)} cannot be decoded ({error}). Replace it or drop the row.") from error


def _from_path(value: str | Path, where: str) -> EncodedImage:
    path = _local_path(value, where)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ImageError(f"{where}: cannot read the image {str(path)!r}: {reason} (looked in {Path.cwd()}).") from error
    return EncodedImage(
        source=str(path), digest=hashlib.sha256(data).hexdigest(), size=_size(data, f"{where} ({path})")
    )


def _from_bytes(data: bytes, where: str) -> EncodedImage:
    return EncodedImage(source=data, digest=hashlib.sha256(data).hexdigest(), size=_size(data, where))


def _local_path(value: str | Path, where: str) -> Path:
    if isinstance(value, str) and "://" in value:
        address = urlparse(value)
        if address.scheme != "file":
            raise ImageError(f"{where}: {value!r} is not on this machine. Download the image first and give its path.")
        return Path(url2pathname(address.path))
    if not str(value).strip():
        raise ImageError(f"{where}: the image's path is empty.")
    return Path(value).expanduser()


def _size(data: bytes, where: str) -> tuple[int, int]:
    """Width and height after EXIF orientation, from the header."""
    try:
        with _strict(), Image.open(BytesIO(data)) as image:
            width, height = image.size
            # Asked for its EXIF, a PNG decodes itself to look behind the pixels; most have none.
            sideways = (image.format != "PNG" or b"eXIf" in data) and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except _TOO_LARGE as error:
        raise _too_large(where, error) from error
    except _BROKEN as error:
        raise ImageError(f"{where}: the image is broken or of an unknown format ({error}).") from error
    return (height, width) if sideways else (width, height)


def _png(image: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(image)
    if upright.mode not in _PNG_MODES:
        upright = _rgb(upright)
    stream = BytesIO()
    upright.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # Pillow's own conversion clips what is above 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _stream(image: EncodedImage) -> Any:
    return BytesIO(image.source) if isinstance(image.source, bytes) else image.source


def _name(image: EncodedImage) -> str:
    return "the image" if isinstance(image.source, bytes) else f"the image {image.source!r}"


def _strict() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)


def _too_large(where: str, error: Exception) -> ImageError:
    return ImageError(
        f"{where}: the image is too large ({error}). Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )
