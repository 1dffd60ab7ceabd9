"""One image: kept encoded until a worker decodes it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from boresight.data.opener import local_path, read_file, shown, written_bytes
from boresight.data.pixels import remark, rgb, upright, upright_size
from boresight.errors import ImageError
from boresight.types import EncodedImage

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_PNG_ORIENTED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_NOT_OPENED = ("EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5")
"""Formats that Pillow passes to another program, or recognises and cannot read."""
_TOO_LARGE = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def load_image(value: object, *, where: str) -> EncodedImage:
    """`value` as an image, still encoded; only its header is read.

    Args:
        value: a PIL image (encoded once, losslessly, as PNG), a path or ``file://`` address, encoded bytes, the bytes as
            base64 or as a ``data:`` address, a mapping with ``bytes`` or ``path`` as data sets store images, or an
            `EncodedImage`.
        where: what an error calls it, such as ``"row 3, images[1]"``.

    Raises:
        ImageError: the image is missing, broken, too large, or of a type that is none of these.
    """
    match value:
        case EncodedImage():
            return value
        case Image.Image():
            return _from_pil(value, where)
        case bytes() | bytearray() | memoryview():
            return _from_bytes(bytes(value), where)
        case str() if (data := written_bytes(value, where)) is not None:
            return _from_bytes(data, where)
        case str() | Path():
            return _from_path(value, where)
        case Mapping() if value.get("bytes") is not None:
            return load_image(value["bytes"], where=where)
        case Mapping() if value.get("path") is not None:
            return load_image(value["path"], where=where)
        case None:
            raise ImageError(f"{where}: the image is missing (None). Leave the place out, or give the image.")
        case _:
            kind = type(value).__name__
            if isinstance(value, Mapping):
                kind = f"a mapping with keys {sorted(map(str, value))}"
            raise ImageError(
                f"{where}: {kind} is no image. Give a PIL image, a path, encoded bytes, or a mapping with 'bytes' "
                "or 'path'."
            )


def decode(image: EncodedImage, *, where: str = "image") -> Image.Image:
    """The image in RGB and upright, by the rules of `data.pixels`.

    Raises:
        ImageError: the data ends early or is damaged, which the header does not show.
    """
    data = image.source if isinstance(image.source, bytes) else read_file(Path(image.source), where)
    try:
        with _strict(), Image.open(BytesIO(data), formats=_formats()) as opened:
            kind = opened.format
            return rgb(upright(opened), format=kind)
    except _TOO_LARGE as error:
        raise _too_large(where, error) from error
    except Exception as error:  # Pillow's decoders raise many types
        raise ImageError(f"{where}: {_name(image)} cannot be decoded ({error}). Replace it or drop the row.") from error


def _from_path(value: str | Path, where: str) -> EncodedImage:
    path = local_path(value, where)
    return _encoded(read_file(path, where), str(path), f"{where} ({shown(path)})")


def _from_bytes(data: bytes, where: str) -> EncodedImage:
    return _encoded(data, data, where)


def _encoded(data: bytes, source: bytes | str, where: str) -> EncodedImage:
    try:
        with _strict(), Image.open(BytesIO(data), formats=_formats()) as image:
            has_exif = image.format != "PNG" or any(mark in data for mark in _PNG_ORIENTED)
            size, note = upright_size(image, has_exif=has_exif), remark(image)
    except _TOO_LARGE as error:
        raise _too_large(where, error) from error
    except Exception as error:  # Pillow's readers raise many types
        reason = str(error).partition("<_io.BytesIO")[0].strip() or type(error).__name__
        raise ImageError(f"{where}: the image is broken or of an unknown format ({reason}).") from error
    if 0 in size:
        raise ImageError(f"{where}: the image has no pixels ({size[0]}×{size[1]}).")
    return EncodedImage(source=source, digest=hashlib.sha256(data).hexdigest(), size=size, remark=note)


def _from_pil(image: Image.Image, where: str) -> EncodedImage:
    if 0 in image.size:
        raise ImageError(f"{where}: the image has no pixels ({image.width}×{image.height}).")
    try:
        note = remark(image)
        turned = upright(image)
        kept = turned if turned.mode in _PNG_MODES else rgb(turned, format=image.format)
        stream = BytesIO()
        kept.save(stream, format="PNG", compress_level=1, exif=b"")
    except Exception as error:  # a file that PIL opened lazily may be damaged
        raise ImageError(f"{where}: the PIL image cannot be read ({error}). Replace it or drop the row.") from error
    data = stream.getvalue()
    return EncodedImage(source=data, digest=hashlib.sha256(data).hexdigest(), size=kept.size, remark=note)


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_OPENED)


def _name(image: EncodedImage) -> str:
    return "the image" if isinstance(image.source, bytes) else f"the image {shown(image.source)}"


def _strict() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)


def _too_large(where: str, error: Exception) -> ImageError:
    return ImageError(
        f"{where}: the image is too large ({error}). Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
    )
