"""Pixels as the model sees them: upright, in RGB, 8 bits a channel. One rule for every format.

Orientation. The EXIF orientation (also where XMP states it) is applied once. Pillow applies that of a TIFF itself.

Values. Images of 8 bits keep theirs. Others are scaled:

| stored as | value 0 becomes | value 255 comes from |
|---|---|---|
| 16-bit integers | 0 | 65535 |
| 32-bit integers, all in 0–255 | 0 | 255 |
| 32-bit integers, read from PNG or PPM | 0 | 65535 |
| fractions (float), all in 0–1 | 0 | 1 |
| fractions, all in 0–255 | 0 | 255 |
| any other integers or fractions | the smallest finite value | the largest |

NaN becomes 0. Transparent parts are laid over white. Of an animation the first frame is used.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image, ImageCms

ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_WIDE = ("PNG", "PPM")
"""Formats whose 16-bit images Pillow opens with 32 bits."""


def upright_size(image: Image.Image, *, has_exif: bool = True) -> tuple[int, int]:
    """Width and height in pixels of `upright(image)`, from the header alone.

    Args:
        has_exif: False where the file is known to state no orientation. Pillow decodes a PNG to look for one.
    """
    width, height = image.size
    return (height, width) if has_exif and _orientation(image) in _SIDEWAYS else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its orientation says."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def rgb(image: Image.Image, *, format: str | None = None) -> Image.Image:  # noqa: A002
    """The image in RGB by the rules of this module.

    Args:
        format: Pillow's name of the file's format.
    """
    if image.mode in (*_SIXTEEN_BITS, "I", "F"):
        return Image.fromarray(_scaled(np.asarray(image), image.mode, format)).convert("RGB")
    if image.mode == "LAB":
        to_rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *to_rgb, outputMode="RGB")  # pyright: ignore[reportReturnType]
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data or image.mode == "RGBa":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def remark(image: Image.Image) -> str | None:
    """What a user should know about how this image is used, from its header; None if nothing is special."""
    frames = 1
    if image.format not in ("MPO", "TIFF", None):  # further images of a camera's file, or pages
        with suppress(Exception):  # a damaged file is named when it is decoded
            frames = getattr(image, "n_frames", 1)
    if frames > 1:
        return "animated, of which the first frame is used"
    if image.mode == "F":
        return "of fractions (float), scaled to 0–255"
    if image.mode == "I" and image.format not in _WIDE:
        return "of 32-bit integers, scaled to 0–255"
    return None


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns a TIFF as it loads it, and its header's size is of the turned image
    with suppress(Exception):  # damaged EXIF, or some that Pillow cannot read: as stored, in size and in pixels
        found = image.getexif().get(ORIENTATION)
        return found if isinstance(found, int) else 1
    return 1


def _scaled(values: Any, mode: str, format: str | None) -> Any:  # noqa: A002
    """[H, W] integers or fractions → [H, W] 8-bit integers."""
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if mode in _SIXTEEN_BITS or (mode == "I" and format in _WIDE):
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= (1 if mode == "F" else 255):
        low, high = 0.0, 1.0 if mode == "F" else 255.0
    elif mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    share = (np.clip(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low, high) - low) / ((high - low) or 1.0)
    return np.floor(share * 255 + 0.5).astype(np.uint8)
