"""Boxes and points as models write them.

| written as | who writes it |
|---|---|
| ``[x1, y1, x2, y2]``, ``(x1, y1, x2, y2)`` | most models and data sets |
| ``(x1,y1),(x2,y2)``, also between ``<|box_start|>`` and ``<|box_end|>`` | Qwen-VL, Qwen2-VL |
| ``[[x1, y1], [x2, y2]]``, ``[[x1, y1, x2, y2]]``, ``<box>…</box>`` | InternVL and others |
| ``{"bbox_2d": [x1, y1, x2, y2], "label": …}`` | Qwen2.5-VL, Qwen3-VL |
| ``{"x1": …, "y1": …, "x2": …, "y2": …}``, ``left``/``top``/``right``/``bottom``, ``xmin``/…, ``x``/``y``/``width``/``height`` | JSON |
| ``{"top_left": [x1, y1], "bottom_right": [x2, y2]}``, ``x1=…, y1=…, x2=…, y2=…``, ``[x1 y1 x2 y2]`` | |
| four numbers and nothing else | |
| ``[]``, ``none``, ``no object`` | nothing is there |
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from boresight.rewards.notation import plain_signs

Box = tuple[float, float, float, float]
Point = tuple[float, float]

_NUMBER = r"\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_FOUR = r"[\[(]" + r"[,\s]".join([_NUMBER] * 4) + r"[\])]"
_PAIR = r"[\[(]" + ",".join([_NUMBER] * 2) + r"[\])]"
_NAMED = r"[,;\s]*".join(rf"\b{name}\s*[=:]{_NUMBER}" for name in ("x1", "y1", "x2", "y2"))
BOX = re.compile(rf"{_FOUR}|{_PAIR}\s*(?:,|to)?\s*{_PAIR}|{_NAMED}")
POINT = re.compile(rf"{_PAIR}|<points?\s+x1?\s*=\s*[\"']?{_NUMBER}[\"']?\s+y1?\s*=\s*[\"']?{_NUMBER}[\"']?")
ALONE = re.compile(r"[,\s]".join([_NUMBER] * 4))
POINT_ALONE = re.compile(r"[,\s]".join([_NUMBER] * 2))
NOTHING = re.compile(
    r"\s*(?:\[\s*\]|\{\s*\}|none|null|nothing|no\s+(?:such\s+)?(?:object|box|boxes|target|match)s?|not\s+(?:present|visible|found)|n/a)\s*\.?\s*",
    re.IGNORECASE,
)
FENCE = re.compile(r"```\w*\n?|```")

CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
)
SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def stated_boxes(text: str) -> list[Box] | None:
    """Every box that the text states, in its own coordinates; an empty list where it states that there is none; None where it does neither.

    A box without area or with its corners swapped is not one.
    """
    text = FENCE.sub("", plain_signs(text)).strip()
    if NOTHING.fullmatch(text):
        return []
    found = list(_keyed(text, _box_of_keys)) + [_corners(match) for match in BOX.finditer(text)]
    if not found and (alone := ALONE.fullmatch(text)):
        found = [_corners(alone)]
    return found if found and all(left < right and top < bottom for left, top, right, bottom in found) else None


def stated_box(text: str) -> Box | None:
    """The one box that the text states; None where it states none, or several, or one of no area."""
    found = stated_boxes(text)
    return found[0] if found is not None and len(found) == 1 else None


def stated_point(text: str) -> Point | None:
    """The one point that the text states, or the centre of the one box that it states; None where there is none, or several."""
    if box := stated_box(text):
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    text = FENCE.sub("", plain_signs(text)).strip()
    found = list(_keyed(text, _point_of_keys)) + [_pair(match) for match in POINT.finditer(text)]
    if not found and (alone := POINT_ALONE.fullmatch(text)):
        found = [_pair(alone)]
    return found[0] if len(found) == 1 else None


def _corners(match: re.Match[str]) -> Box:
    left, top, right, bottom = (float(each) for each in match.groups() if each is not None)
    return left, top, right, bottom


def _pair(match: re.Match[str]) -> Point:
    x, y = (float(each) for each in match.groups() if each is not None)
    return x, y


def _keyed(text: str, read: Any) -> Iterator[Any]:
    """What `read` makes of every JSON object in the text."""
    for match in re.finditer(r"\{[^{}]*\}", text):
        try:
            entries = json.loads(match[0])
        except json.JSONDecodeError:
            continue
        if (found := read({str(key).lower(): value for key, value in entries.items()})) is not None:
            yield found


def _box_of_keys(entries: dict[str, Any]) -> Box | None:
    for names in CORNERS:
        if (numbers := _numbers(entries, names)) is not None:
            return numbers[0], numbers[1], numbers[2], numbers[3]
    for names in SIDES:
        if (numbers := _numbers(entries, names)) is not None:
            left, top, width, height = numbers
            return left, top, left + width, top + height
    corners = [entries.get(name) for name in ("top_left", "bottom_right")]
    if all(isinstance(corner, list) and len(corner) == 2 for corner in corners):
        named = dict(zip(CORNERS[0], (*corners[0], *corners[1]), strict=True))  # pyright: ignore[reportOptionalIterable]
        return _box_of_keys(named)
    return None


def _point_of_keys(entries: dict[str, Any]) -> Point | None:
    numbers = _numbers(entries, ("x", "y"))
    return None if numbers is None else (numbers[0], numbers[1])


def _numbers(entries: dict[str, Any], names: Sequence[str]) -> list[float] | None:
    values = [entries.get(name) for name in names]
    if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return [float(value) for value in values if value is not None]
    return None
