"""Answers that are a place in an image: a box, or a point. `boxes.py` lists how they may be written.

A model may write coordinates in five ways:

| `coordinates` | meaning | models |
|---|---|---|
| ``original`` | pixels of the image as it came | — |
| ``model`` | pixels of the image as the model saw it after resizing | Qwen2.5-VL |
| ``thousand`` | thousandths of its sides, 0 to 1000 | Qwen2-VL, Qwen3-VL, InternVL |
| ``percent`` | hundredths of its sides, 0 to 100 | Molmo |
| ``unit`` | shares of its sides, 0 to 1 | — |

Rows hold the gold as `bbox`, ``[x1, y1, x2, y2]``, in pixels of the original image unless `gold_coordinates` says otherwise; several as a
list of boxes; an empty list where nothing is to be found. Each row has one image, or the last of several counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from boresight.errors import ConfigError, RewardError
from boresight.rewards.boxes import Box, Point, stated_boxes, stated_point
from boresight.rewards.extract import LogMetric, completion_text, final_answer, log_unparsed
from boresight.rewards.function import RewardFunc, with_options

if TYPE_CHECKING:
    from boresight.types import Conversation

Coordinates = Literal["original", "model", "thousand", "percent", "unit"]
Size = tuple[int, int]
Scale = tuple[float, float]

SIDE = {"thousand": 1000, "percent": 100, "unit": 1}
"""The length of a side in the coordinates that are shares of it."""


def scale_to_original(coordinates: Coordinates, size: Size, model_size: Size | None = None) -> Scale:
    """What x and y of a completion are multiplied by to become pixels of the original image.

    Args:
        coordinates: how the model writes them.
        size: width and height of the original.
        model_size: width and height as the model saw it; needed for `model`.

    Raises:
        RewardError: `model` without `model_size`.
    """
    if coordinates == "original":
        return 1.0, 1.0
    if coordinates != "model":
        return size[0] / SIDE[coordinates], size[1] / SIDE[coordinates]
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


def matched_iou(boxes: Sequence[Box], golds: Sequence[Box]) -> float:
    """Sum of the IoUs of boxes matched one to one with golds, the best pair first as in COCO's evaluation, over the larger count.

    1 where neither side has a box: nothing was to be found, and nothing was stated.
    """
    if not boxes and not golds:
        return 1.0
    pairs = sorted(
        ((box_iou(box, gold), i, j) for i, box in enumerate(boxes) for j, gold in enumerate(golds)), reverse=True
    )
    total, boxes_used, golds_used = 0.0, set[int](), set[int]()
    for iou, i, j in pairs:
        if i not in boxes_used and j not in golds_used:
            total += iou
            boxes_used.add(i)
            golds_used.add(j)
    return total / max(len(boxes), len(golds))


def iou_reward(
    completions: Sequence[str | Conversation],
    bbox: Sequence[Sequence[Any] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None = None,
    log_metric: LogMetric | None = None,
    *,
    coordinates: Coordinates = "original",
    gold_coordinates: Coordinates = "original",
    **columns: Any,
) -> list[float | None]:
    """Intersection over union of the stated box and `bbox`, 0 where no single box is stated; None where `bbox` is None.

    Where `bbox` is a list of boxes, the stated ones are matched with them (`matched_iou`); where it is empty, 1 for a completion that
    states that there is nothing. Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags.
    `get_iou_reward` sets `coordinates`.

    Raises:
        RewardError: a `bbox` that is no box, or without an image.
    """
    to_pixels = _scales(coordinates, bbox, image_sizes, model_image_sizes)
    golds = _golds(bbox, _scales(gold_coordinates, bbox, image_sizes, model_image_sizes))
    stated = [stated_boxes(final_answer(completion_text(completion))) for completion in completions]
    one_wanted = [gold is not None and len(gold) == 1 for gold in golds]
    read = [None if one and boxes and len(boxes) > 1 else boxes for boxes, one in zip(stated, one_wanted, strict=True)]
    log_unparsed(log_metric, "iou_reward", read, golds)
    return [
        None if gold is None else 0.0 if boxes is None else matched_iou([_scaled(box, scale) for box in boxes], gold)
        for boxes, gold, scale in zip(read, golds, to_pixels, strict=True)
    ]


def point_in_box_reward(
    completions: Sequence[str | Conversation],
    bbox: Sequence[Sequence[Any] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None = None,
    log_metric: LogMetric | None = None,
    *,
    coordinates: Coordinates = "original",
    gold_coordinates: Coordinates = "original",
    **columns: Any,
) -> list[float | None]:
    """1 where the stated point lies in `bbox`, or in one of its boxes (edges included), else 0; None where `bbox` is None.

    Where `bbox` is empty, 1 for a completion that states that there is nothing. Read from ``<answer>…</answer>``, or from what follows the
    reasoning where there are no tags; a stated box counts by its centre. `get_point_in_box_reward` sets `coordinates`.

    Raises:
        RewardError: a `bbox` that is no box, or without an image.
    """
    to_pixels = _scales(coordinates, bbox, image_sizes, model_image_sizes)
    golds = _golds(bbox, _scales(gold_coordinates, bbox, image_sizes, model_image_sizes))
    texts = [final_answer(completion_text(completion)) for completion in completions]
    stated = ["nothing" if stated_boxes(text) == [] else stated_point(text) for text in texts]
    log_unparsed(log_metric, "point_in_box_reward", stated, golds)
    return [
        None if gold is None else _inside(point, gold, scale)
        for point, gold, scale in zip(stated, golds, to_pixels, strict=True)
    ]


def _inside(point: Point | str | None, golds: Sequence[Box], scale: Scale) -> float:
    if point is None or isinstance(point, str):
        return float(point is not None and not golds)
    x, y = point[0] * scale[0], point[1] * scale[1]
    return float(any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in golds))


def _scaled(box: Box, scale: Scale) -> Box:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def gold_boxes(bbox: Sequence[Any]) -> list[Box]:
    """The boxes of a row's `bbox`: one box, a list of boxes, or an empty list.

    Raises:
        RewardError: something that is no box.
    """
    boxes = [bbox] if bbox and not isinstance(bbox[0], Sequence) else list(bbox)
    if len(boxes) == 2 and all(len(corner) == 2 for corner in boxes):  # [[x1, y1], [x2, y2]]
        boxes = [[*boxes[0], *boxes[1]]]
    return [_gold_box(box) for box in boxes]


def _gold_box(box: Any) -> Box:
    if not isinstance(box, Sequence) or len(cast("Sequence[Any]", box)) != 4:
        raise RewardError(f"bbox {box!r} is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2.")
    left, top, right, bottom = map(float, cast("Sequence[Any]", box))
    if not (left < right and top < bottom):
        raise RewardError(f"bbox {list(cast('Sequence[Any]', box))} is not [x1, y1, x2, y2] with x1 < x2 and y1 < y2.")
    return left, top, right, bottom


def _golds(bbox: Sequence[Sequence[Any] | None], scales: Sequence[Scale]) -> list[list[Box] | None]:
    return [
        None if gold is None else [_scaled(box, scale) for box in gold_boxes(gold)]
        for gold, scale in zip(bbox, scales, strict=True)
    ]


def _scales(
    coordinates: Coordinates,
    bbox: Sequence[Sequence[Any] | None],
    image_sizes: Sequence[Sequence[Size]],
    model_image_sizes: Sequence[Sequence[Size]] | None,
) -> list[Scale]:
    scales: list[Scale] = []
    for index, (gold, sizes) in enumerate(zip(bbox, image_sizes, strict=True)):
        if gold is not None and not sizes:
            raise RewardError(f"completion {index} has a bbox but no image to find it in.")
        seen = model_image_sizes[index][-1] if model_image_sizes and model_image_sizes[index] else None
        scales.append(scale_to_original(coordinates, sizes[-1], seen) if sizes else (1.0, 1.0))
    return scales


def get_iou_reward(coordinates: Coordinates, gold_coordinates: Coordinates = "original") -> RewardFunc:
    """`iou_reward` for a model that writes its coordinates, and a data set that has its `bbox`, in these ways.

    Raises:
        ConfigError: no such way.
    """
    return with_options(
        iou_reward,
        coordinates=_checked("coordinates", coordinates),
        gold_coordinates=_checked("gold_coordinates", gold_coordinates),
    )


def get_point_in_box_reward(coordinates: Coordinates, gold_coordinates: Coordinates = "original") -> RewardFunc:
    """`point_in_box_reward` for a model that writes its coordinates, and a data set that has its `bbox`, in these ways.

    Raises:
        ConfigError: no such way.
    """
    return with_options(
        point_in_box_reward,
        coordinates=_checked("coordinates", coordinates),
        gold_coordinates=_checked("gold_coordinates", gold_coordinates),
    )


def _checked(option: str, coordinates: Coordinates) -> Coordinates:
    if coordinates not in get_args(Coordinates):
        raise ConfigError(f"{option} must be one of {', '.join(get_args(Coordinates))}, and is {coordinates!r}.")
    return coordinates
