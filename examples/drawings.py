"""Generated images for the examples: no download, and exact answers."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

SIDE = 112


def dots(number: int, chooser: random.Random) -> Image.Image:
    """An image with `number` dots that do not overlap."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    for place in chooser.sample(range(16), number):
        left, top = 28 * (place % 4) + 6, 28 * (place // 4) + 6
        pen.ellipse((left, top, left + 15, top + 15), fill="black")
    return image


def box(color: str, chooser: random.Random) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """An image with one coloured box, and the box: left, top, right, bottom in pixels."""
    left, top = chooser.randrange(8, 60), chooser.randrange(8, 60)
    right, bottom = left + chooser.randrange(20, 45), top + chooser.randrange(20, 45)
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=color)
    return image, (left, top, right, bottom)
