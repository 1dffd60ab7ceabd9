"""The figure of two tangents: a circle round O, a point P outside, the tangents from P touching at A and B."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

SEGMENTS = ("OA", "OB", "PA", "PB", "OP", "AB")
SCALE = 4
"""Rollout this much larger and then shrunk, for smooth lines."""
INK, PALE, PAPER = 30, 130, 255
MARGIN = 0.13
"""Of the image's side, kept free for the letters."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Where things are, in pixels from the upper left corner."""

    size: int
    """Of the square image's side."""
    radius: float
    points: dict[str, Point]
    """A, B, O and P."""
    lines: tuple[str, ...]
    """The segments that are drawn, of `SEGMENTS`."""
    marked: tuple[str, str] | None = None
    """An angle, such as APO, and what is written at it."""

    def angle(self, name: str) -> float:
        """In degrees, of three letters, the vertex in the middle."""
        (ax, ay), (vx, vy), (bx, by) = (self.points[letter] for letter in name)
        turn = math.atan2(by - vy, bx - vx) - math.atan2(ay - vy, ax - vx)
        return math.degrees(abs((turn + math.pi) % (2 * math.pi) - math.pi))


def tangent_figure(
    half_angle: float,
    *,
    size: int,
    turn: float,
    lines: tuple[str, ...] = ("OA", "OB", "PA", "PB"),
    marked: tuple[str, str] | None = None,
) -> Figure:
    """The figure with a given angle APO, as large as the image allows.

    Args:
        half_angle: APO in degrees, above 0 and below 90.
        size: the square image's side in pixels.
        turn: the direction from O to P, in degrees anticlockwise from the right.
        lines: the segments to draw; OP is drawn where the angle in question has it as a side.
        marked: an angle and what is written at it.
    """
    alpha, theta = math.radians(half_angle), math.radians(turn)
    distance = 1 / math.sin(alpha)
    # AOP is 90° − APO: the radii to A and B stand that far to either side of OP.
    points = {"O": (0.0, 0.0), "P": _polar(distance, theta)}
    points |= {"A": _polar(1, theta + math.pi / 2 - alpha), "B": _polar(1, theta - math.pi / 2 + alpha)}
    left, right = min(-1, points["P"][0]), max(1, points["P"][0])
    top, bottom = min(-1, points["P"][1]), max(1, points["P"][1])
    unit = size * (1 - 2 * MARGIN) / max(right - left, bottom - top)
    shift = (size / 2 - unit * (left + right) / 2, size / 2 - unit * (top + bottom) / 2)
    placed = {name: (shift[0] + unit * x, shift[1] + unit * y) for name, (x, y) in points.items()}
    return Figure(size, unit, placed, lines, marked)


def draw(figure: Figure) -> Image.Image:
    """The image: black on white, the points named."""
    canvas = Image.new("L", (figure.size * SCALE, figure.size * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas)
    width = max(SCALE, round(figure.size * SCALE / 150))
    big = {name: (x * SCALE, y * SCALE) for name, (x, y) in figure.points.items()}
    radius = figure.radius * SCALE
    written = None if figure.marked is None else _mark_angle(pen, figure, big, width)
    _circle(pen, big["O"], radius + width / 2, outline=INK, width=width)
    for line in figure.lines:
        pen.line([big[line[0]], big[line[1]]], fill=INK, width=width)
    if figure.marked is not None and written is not None:
        # On a rim of paper, since a line may run through it.
        font = ImageFont.load_default(figure.size * SCALE * 0.052)
        pen.text(written, figure.marked[1], INK, font, "mm", stroke_width=1.3 * width, stroke_fill=PAPER)
    for point in big.values():
        _circle(pen, point, 1.6 * width, fill=INK)
    font = ImageFont.load_default(figure.size * SCALE * 0.062)
    for name, place in _letter_places(figure, big).items():
        pen.text(place, name, fill=INK, font=font, anchor="mm")
    return canvas.resize((figure.size, figure.size), Image.Resampling.LANCZOS)


def _polar(distance: float, theta: float) -> Point:
    """Images count y downwards."""
    return distance * math.cos(theta), -distance * math.sin(theta)


def _circle(pen: ImageDraw.ImageDraw, centre: Point, radius: float, **style: object) -> None:
    x, y = centre
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], **style)  # pyright: ignore[reportArgumentType]


def _letter_places(figure: Figure, big: dict[str, Point]) -> dict[str, Point]:
    """Each letter outside the figure: away from O for the points on the circle and P, away from P for O."""
    (ox, oy), (px, py) = big["O"], big["P"]
    gap = figure.size * SCALE * 0.062
    places = {}
    for name, (x, y) in big.items():
        dx, dy = (ox - px, oy - py) if name == "O" else (x - ox, y - oy)
        length = math.hypot(dx, dy)
        places[name] = (x + gap * dx / length, y + gap * dy / length)
    return places


def _mark_angle(pen: ImageDraw.ImageDraw, figure: Figure, big: dict[str, Point], width: int) -> Point:
    """Draws an arc at the vertex between the sides, and returns the place beyond it for what is written."""
    assert figure.marked is not None
    first, vertex, last = figure.marked[0]
    x, y = big[vertex]
    angles = [math.atan2(big[end][1] - y, big[end][0] - x) for end in (first, last)]
    start, stop = sorted(angles)
    if stop - start > math.pi:
        start, stop = stop, start + 2 * math.pi
    sides = [math.hypot(big[end][0] - x, big[end][1] - y) for end in (first, last)]
    reach = min(0.4 * min(sides), figure.size * SCALE * 0.13)
    box = [x - reach, y - reach, x + reach, y + reach]
    pen.arc(box, math.degrees(start), math.degrees(stop), fill=PALE, width=width)
    middle = (start + stop) / 2
    # The narrower the angle, the further out its text has to stand to lie between the sides.
    room = figure.size * SCALE * 0.05 / max(math.sin((stop - start) / 2), 0.25)
    beyond = max(reach + figure.size * SCALE * 0.045, room)
    return x + beyond * math.cos(middle), y + beyond * math.sin(middle)
