"""Pictures that the examples draw for themselves: they need no download, and their answers are exact."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

SIDE = 112


def dots(number: int, chooser: random.Random) -> Image.Image:
    """A picture with so many dots, none on another."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(picture)
    for place in chooser.sample(range(16), number):
        left, top = 28 * (place % 4) + 6, 28 * (place // 4) + 6
        pen.ellipse((left, top, left + 15, top + 15), fill="black")
    return picture


def box(color: str, chooser: random.Random) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A picture with one coloured box, and where it is: left, top, right, bottom in pixels."""
    left, top = chooser.randrange(8, 60), chooser.randrange(8, 60)
    right, bottom = left + chooser.randrange(20, 45), top + chooser.randrange(20, 45)
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), fill=color)
    return picture, (left, top, right, bottom)
