"""Answers that are a place in an image: a box, or a point.

A model may write coordinates in three ways: in pixels of the image as it came (``original``), in pixels of the image as
the model saw it after resizing (``model``: Qwen2-VL, Qwen2.5-VL), or in thousandths of its sides (``thousand``: Qwen3-VL,
InternVL). The gold is always in pixels of the original; the completion's coordinates are converted to them.

Rows hold the gold as `bbox`, ``[x1, y1, x2, y2]``, and one image each, the last if there are several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from boresight.errors import ConfigError, RewardError
from boresight.rewards.extract import completion_text, final_answer
from boresight.rewards.function import RewardFunc

if TYPE_CHECKING:
    from boresight.types import Conversation

Coordinates = Literal["original", "model", "thousand"]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
Size = tuple[int, int]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(r"[\[(]" + ",".join([_NUMBER] * 4) + r"[\])]")
POINT = re.compile(r"[\[(]" + ",".join([_NUMBER] * 2) + r"[\])]")


def stated_box(text: str) -> Box | None:
    """The one box that the text states, ``[x1, y1, x2, y2]``; None where it states none, or several, or one of no area."""
    found = BOX.findall(text)
    if len(found) != 1:
        return None
    left, top, right, bottom = map(float, found[0])
    return (left, top, right, bottom) if left < right and top < bottom else None


def stated_point(text: str) -> Point | None:
    """The one point that the text states, ``[x, y]``, or its one box's centre; None where there is none, or several."""
    if box := stated_box(text):
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    found = POINT.findall(text)
    return (float(found[0][0]), float(found[0][1])) if len(found) == 1 else None


def scale_to_original(coordinates: Coordinates, size: Size, model_size: Size | None = None) -> tuple[float, float]:
    """What x and y of a completion are multiplied by to become pixels of the original image.

    Args:
        coordinates: how the model writes them.
        size: width and height of the original.
        model_size: width and height as the model saw it; needed for `model`.

    Raises:
        RewardError: `model` without `model_size`.
    """
    match coordinates:
        case "original":
            return 1.0, 1.0
        case "thousand":
            return size[0] / 1000, size[1] / 1000
        case "model":
            if model_size is None:
                raise RewardError("coordinates='model' needs the image's size as the model saw it: model_image_sizes.")
            return size[0] / model_size[0], size[1] / model_size[1]


def box_iou(box: Box, other: Box) -> float:
    """Area of the intersection over area of the union of two boxes in one system of coordinates."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(box) + _area(other) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou_reward(
    completions: Sequence[str | Conversation],
    bbox: Sequence[Sequence[float] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None = None,
    *,
    coordinates: Coordinates = "original",
    **columns: Any,
) -> list[float | None]:
    """Intersection over union of the stated box and `bbox`, 0 where no single box is stated; None where `bbox` is None.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags.
    `get_iou_reward` sets `coordinates`.
    """
    scales = _scales(coordinates, bbox, image_sizes, model_image_sizes)
    return [
        None if gold is None else _iou(stated_box(final_answer(completion_text(completion))), _box(gold), scale)
        for completion, gold, scale in zip(completions, bbox, scales, strict=True)
    ]


def _iou(box: Box | None, gold: Box, scale: tuple[float, float]) -> float:
    x, y = scale
    return box_iou((box[0] * x, box[1] * y, box[2] * x, box[3] * y), gold) if box else 0.0


def point_in_box_reward(
    completions: Sequence[str | Conversation],
    bbox: Sequence[Sequence[float] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None = None,
    *,
    coordinates: Coordinates = "original",
    **columns: Any,
) -> list[float | None]:
    """1 where the stated point lies in `bbox` (its edge included), else 0; None where `bbox` is None.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags; a stated box counts by
    its centre. `get_point_in_box_reward` sets `coordinates`.
    """
    scales = _scales(coordinates, bbox, image_sizes, model_image_sizes)
    return [
        None if gold is None else _inside(stated_point(final_answer(completion_text(completion))), _box(gold), scale)
        for completion, gold, scale in zip(completions, bbox, scales, strict=True)
    ]


def _inside(point: Point | None, box: Box, scale: tuple[float, float]) -> float:
    if point is None:
        return 0.0
    return float(box[0] <= point[0] * scale[0] <= box[2] and box[1] <= point[1] * scale[1] <= box[3])


def _box(gold: Sequence[float]) -> Box:
    left, top, right, bottom = gold
    if not (left < right and top < bottom):
        raise RewardError(f"bbox {list(gold)} is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2.")
    return left, top, right, bottom


def _scales(
    coordinates: Coordinates,
    bbox: Sequence[Sequence[float] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None,
) -> list[tuple[float, float]]:
    scales: list[tuple[float, float]] = []
    for index, (gold, sizes) in enumerate(zip(bbox, image_sizes, strict=True)):
        if gold is not None and not sizes:
            raise RewardError(f"completion {index} has a bbox but no image to find it in.")
        seen = model_image_sizes[index][-1] if model_image_sizes and model_image_sizes[index] else None
        scales.append(scale_to_original(coordinates, sizes[-1], seen) if sizes else (1.0, 1.0))
    return scales


def get_iou_reward(coordinates: Coordinates) -> RewardFunc:
    """`iou_reward` for a model that writes its coordinates in this way.

    Raises:
        ConfigError: no such way.
    """
    return partial(iou_reward, coordinates=_checked(coordinates))


def get_point_in_box_reward(coordinates: Coordinates) -> RewardFunc:
    """`point_in_box_reward` for a model that writes its coordinates in this way.

    Raises:
        ConfigError: no such way.
    """
    return partial(point_in_box_reward, coordinates=_checked(coordinates))


def _checked(coordinates: Coordinates) -> Coordinates:
    if coordinates not in get_args(Coordinates):
        raise ConfigError(f"coordinates must be one of {', '.join(get_args(Coordinates))}, and is {coordinates!r}.")
    return coordinates
