"""Tools to look at an image again: zoom into a region, and mark one.

Regions are always those of the original image, whatever the policy looked at in between, and whatever size the processor gave it. Three
classes differ in the unit of their coordinates: thousandths of width and height (Qwen3-VL's), shares of them, and pixels (Qwen2.5-VL's,
if the processor does not resize).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image, ImageDraw

MARK_COLOR = (255, 0, 0)


class ImageTools:
    """An environment (`environment_factory=ImageTools`) whose tools look at the row's images again, in thousandths (0 to 1000).

    Attributes:
        min_side: a region is enlarged until its shorter side has this many pixels. None: it keeps its size.
        unit: what 1 is; None: a pixel.
    """

    min_side: ClassVar[int | None] = 224
    unit: ClassVar[float | None] = 1000.0

    def __init__(self) -> None:
        self._images: Sequence[Image.Image] = ()

    def reset(self, images: Sequence[Image.Image] = (), **columns: Any) -> None:
        """Look at the images of another row."""
        self._images = images

    def zoom(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Look closely at a region of an image.

        Args:
            left: Left edge of the region, from 0 to 1000.
            top: Top edge of the region, from 0 to 1000.
            right: Right edge of the region, from 0 to 1000.
            bottom: Bottom edge of the region, from 0 to 1000.
            image: Number of the image, from 1.

        Returns:
            The region, enlarged.
        """
        source = self._image(image)
        return [
            {
                "type": "image",
                "image": enlarged(source.crop(self._box(source, left, top, right, bottom)), self.min_side),
            }
        ]

    def mark(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Draw a red rectangle into a copy of an image.

        Args:
            left: Left edge of the region, from 0 to 1000.
            top: Top edge of the region, from 0 to 1000.
            right: Right edge of the region, from 0 to 1000.
            bottom: Bottom edge of the region, from 0 to 1000.
            image: Number of the image, from 1.

        Returns:
            The whole image with the rectangle.
        """
        marked = self._image(image).convert("RGB")
        x0, y0, x1, y1 = self._box(marked, left, top, right, bottom)
        width = max(1, round(min(marked.size) / 100))
        ImageDraw.Draw(marked).rectangle((x0, y0, x1 - 1, y1 - 1), outline=MARK_COLOR, width=width)
        return [{"type": "image", "image": marked}]

    def _image(self, number: int) -> Image.Image:
        if not 1 <= number <= len(self._images):
            raise ValueError(f"there is no image {number}; there are {len(self._images)}")
        return self._images[number - 1]

    def _box(
        self, image: Image.Image, left: float, top: float, right: float, bottom: float
    ) -> tuple[int, int, int, int]:
        """In pixels, edges outside the image moved to its border."""
        sides = (image.width, image.height) * 2
        scales = [1.0 if self.unit is None else side / self.unit for side in sides]
        edges = [
            min(max(round(float(edge) * scale), 0), side)
            for edge, scale, side in zip((left, top, right, bottom), scales, sides, strict=True)
        ]
        if edges[2] <= edges[0] or edges[3] <= edges[1]:
            raise ValueError("the region is empty: left must be below right, and top below bottom, inside the image")
        return (edges[0], edges[1], edges[2], edges[3])


class PixelImageTools(ImageTools):
    """As `ImageTools`, in pixels of the original image."""

    unit: ClassVar[float | None] = None

    def zoom(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Look closely at a region of an image.

        Args:
            left: Left edge of the region, in pixels of the original image.
            top: Top edge of the region, in pixels of the original image.
            right: Right edge of the region, in pixels of the original image.
            bottom: Bottom edge of the region, in pixels of the original image.
            image: Number of the image, from 1.

        Returns:
            The region, enlarged.
        """
        return super().zoom(left, top, right, bottom, image)

    def mark(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Draw a red rectangle into a copy of an image.

        Args:
            left: Left edge of the region, in pixels of the original image.
            top: Top edge of the region, in pixels of the original image.
            right: Right edge of the region, in pixels of the original image.
            bottom: Bottom edge of the region, in pixels of the original image.
            image: Number of the image, from 1.

        Returns:
            The whole image with the rectangle.
        """
        return super().mark(left, top, right, bottom, image)


class RelativeImageTools(ImageTools):
    """As `ImageTools`, in shares of width and height (0 to 1)."""

    unit: ClassVar[float | None] = 1.0

    def zoom(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Look closely at a region of an image.

        Args:
            left: Left edge of the region, from 0 to 1.
            top: Top edge of the region, from 0 to 1.
            right: Right edge of the region, from 0 to 1.
            bottom: Bottom edge of the region, from 0 to 1.
            image: Number of the image, from 1.

        Returns:
            The region, enlarged.
        """
        return super().zoom(left, top, right, bottom, image)

    def mark(self, left: float, top: float, right: float, bottom: float, image: int = 1) -> list[dict[str, Any]]:
        """Draw a red rectangle into a copy of an image.

        Args:
            left: Left edge of the region, from 0 to 1.
            top: Top edge of the region, from 0 to 1.
            right: Right edge of the region, from 0 to 1.
            bottom: Bottom edge of the region, from 0 to 1.
            image: Number of the image, from 1.

        Returns:
            The whole image with the rectangle.
        """
        return super().mark(left, top, right, bottom, image)


def enlarged(image: Image.Image, min_side: int | None) -> Image.Image:
    """The image with its shorter side at `min_side` pixels at least, proportions kept (at most 4 times as long as it is short)."""
    if min_side is None or min(image.size) >= min_side:
        return image
    scale = min(min_side / min(image.size), 4 * min_side / max(image.size))
    if scale <= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
