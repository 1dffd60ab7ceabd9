"""The boxes of a data set verified before training: each must be a box, and lie in its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boresight.errors import RewardError
from boresight.rewards.function import named, option_of, unwrapped
from boresight.rewards.grounding import gold_boxes, iou_reward, point_in_box_reward, scale_to_original
from boresight.rewards.score import Scorer
from boresight.types import Prompt

WORDS: Mapping[str, str] = {
    "original": "pixels of the original image",
    "model": "pixels of the image as the model sees it",
    "thousand": "thousandths of the image's sides (0 to 1000)",
    "percent": "hundredths of the image's sides (0 to 100)",
    "unit": "shares of the image's sides (0 to 1)",
}
TOLERANCE = 1.02
"""A gold may be this much larger than its image: annotations round."""


@dataclass(slots=True)
class BoxCheck:
    """What a grounding reward can do with the `bbox` column."""

    name: str
    coordinates: str
    gold_coordinates: str
    num_rows: int = 0
    """Rows with a `bbox`."""
    broken: list[str] = field(default_factory=list)
    """Row and reason where `bbox` is no box, or there is no image."""
    outside: list[str] = field(default_factory=list)
    """Row, box and image size where the box does not lie in its image."""
    num_tiny: int = 0
    """Rows whose box is smaller than 2 pixels on both sides: mostly, they are shares of the sides."""

    @property
    def is_sound(self) -> bool:
        return self.num_rows > 0 and not self.broken and not self.outside and self.num_tiny < self.num_rows

    def __str__(self) -> str:
        if not self.num_rows:
            return f"{self.name} applies to none of the rows: they have no bbox"
        parts = [
            f"reads a completion's boxes in {WORDS[self.coordinates]}, and the {self.num_rows} rows' bbox in {WORDS[self.gold_coordinates]}"
        ]
        if self.broken:
            parts.append(f"cannot use {len(self.broken)} of them: {named(self.broken)}")
        if self.outside:
            parts.append(
                f"finds {len(self.outside)} of them outside their image: {named(self.outside)}; gold_coordinates says what they are in"
            )
        if self.num_tiny == self.num_rows:
            parts.append(
                "finds all of them smaller than 2 pixels: gold_coordinates says what they are in, such as 'unit'"
            )
        return f"{self.name} " + "; it ".join(parts)


def check_boxes(scorer: Scorer, prompts: Sequence[Prompt]) -> list[BoxCheck]:
    """Read the `bbox` of every row as the built-in grounding rewards of a scorer do."""
    checks = []
    for name, func in zip(scorer.names, scorer.funcs, strict=True):
        if unwrapped(func) in (iou_reward, point_in_box_reward):
            check = BoxCheck(name, option_of(func, "coordinates"), option_of(func, "gold_coordinates"))
            for prompt in prompts:
                if (bbox := prompt.row.columns.get("bbox")) is not None:
                    check.num_rows += 1
                    _note(check, prompt, bbox)
            checks.append(check)
    return checks


def _note(check: BoxCheck, prompt: Prompt, bbox: Any) -> None:
    row = prompt.row.index
    if not prompt.images:
        check.broken.append(f"row {row} (it has no image)")
        return
    width, height = prompt.images[-1].size
    try:
        boxes = gold_boxes(bbox)
    except RewardError as error:
        check.broken.append(f"row {row} ({error})")
        return
    if check.gold_coordinates == "model":  # the size that the model sees is not known here
        return
    x, y = scale_to_original(check.gold_coordinates, (width, height))  # pyright: ignore[reportArgumentType]
    if any(
        left < 0 or top < 0 or right * x > width * TOLERANCE or bottom * y > height * TOLERANCE
        for left, top, right, bottom in boxes
    ):
        check.outside.append(f"row {row} ({bbox} in {width}×{height} pixels)")
    check.num_tiny += bool(boxes) and all(
        (right - left) * x < 2 and (bottom - top) * y < 2 for left, top, right, bottom in boxes
    )
