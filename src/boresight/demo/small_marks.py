"""Small marks in a large image: an environment in which looking again is the only way to know.

A small chequered mark in two colours lies in one of sixteen fields of an image, each of its own shade. Asked for is the colour of the
mark's upper left square. Where the model sees the whole image, the mark has the mean of both colours everywhere, whichever is where: it
says which two colours there are, and where to look, and no more. So who does not zoom gets one in two at best; who does not look at all,
one in three.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from boresight.demo.easy_vqa import Split
from boresight.errors import ConfigError
from boresight.tools.environments import Environments
from boresight.tools.looking import ImageTools

COLORS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (40, 70, 230)}
QUESTION = "What color is the upper left square of the mark?"
CELLS = 4
"""The image has so many fields on a side; the mark lies in one of them."""
SCALE = 4
"""How many pixels of the image become one on a side where the model sees the whole: two squares of the mark."""
MARK = 16
"""The mark's side in pixels where the model sees the whole."""
ROOM = 12
"""How far the mark may lie from the left and upper edges of its field, in the same pixels: a field of an image of 448 has 28."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One image with its question."""

    column: int
    row: int
    first: str
    """The colour of the upper left square, and of every other one."""
    second: str
    right: int = ROOM // 2
    """Distance from the left edge of its field, in pixels where the model sees the whole."""
    down: int = ROOM // 2

    def png(self, size: int) -> bytes:
        """The image, `size` pixels wide and high.

        Raises:
            ConfigError: the size has no room for a mark.
        """
        side = size // CELLS
        if side % SCALE or side < SCALE * (MARK + ROOM):
            raise ConfigError(
                f"size={size}: an image of marks has 448 pixels on a side, or more in steps of {SCALE * CELLS}."
            )
        image = Image.new("RGB", (size, size))
        for column in range(CELLS):
            for row in range(CELLS):
                image.paste(shade(column, row), (column * side, row * side, (column + 1) * side, (row + 1) * side))
        left, top = self.column * side + SCALE * self.right, self.row * side + SCALE * self.down
        square = SCALE // 2
        for x in range(SCALE * MARK):
            for y in range(SCALE * MARK):
                same = (x // square + y // square) % 2 == 0
                image.putpixel((left + x, top + y), COLORS[self.first if same else self.second])
        stream = io.BytesIO()
        image.save(stream, format="PNG")
        return stream.getvalue()

    @property
    def region(self) -> dict[str, int]:
        """The cell of the mark, as arguments of `ImageTools.zoom`."""
        side = 1000 // CELLS
        left, top = self.column * side, self.row * side
        return {"left": left, "top": top, "right": left + side, "bottom": top + side}


def shade(column: int, row: int) -> tuple[int, int, int]:
    """The colour of a field, by which a place can be recognised: redder to the right, bluer to the bottom."""
    return (60 + 45 * column, 128, 60 + 45 * row)


class MarkTools(ImageTools):
    """`zoom` and `mark` for these images: a region is shown as large as the whole image is, where the model sees that."""

    min_side = 112


def load_small_marks(
    split: Split = "train", *, num_rows: int = 1000, seed: int = 0, size: int = 448
) -> list[dict[str, Any]]:
    """Rows that trainers take: `prompt`, `image`, `solution`. Train and test share no image.

    Args:
        size: of an image in pixels, 448 or more in steps of 16. The model must see it `SCALE` times smaller: max_pixels=(size // 4) ** 2.
    """
    return [
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
            "image": {"bytes": mark.png(size), "path": None},
            "solution": mark.first,
        }
        for mark in marks(split, num_rows, seed)
    ]


def marks(split: Split, num_rows: int, seed: int = 0) -> list[Mark]:
    """Marks of which every colour is the answer equally often. One place in four within every field belongs to the test split alone."""
    chooser = random.Random(f"{split} {seed}")
    pairs = [(first, second) for first in COLORS for second in COLORS if first != second]
    chosen = []
    for number in range(num_rows):
        first, second = pairs[number % len(pairs)]
        while True:
            column, row = chooser.randrange(CELLS), chooser.randrange(CELLS)
            right, down = chooser.randrange(ROOM + 1), chooser.randrange(ROOM + 1)
            if ((column + 2 * row + right + 3 * down) % 4 == 0) == (split == "test"):
                break
        chosen.append(Mark(column, row, first, second, right, down))
    chooser.shuffle(chosen)
    return chosen


def demonstrations(num_rows: int, *, seed: int = 0, size: int = 448, zooms: bool = True) -> list[dict[str, Any]]:
    """Conversations to imitate (SFT): a call of `zoom`, the region as its result, and the answer.

    Args:
        zooms: False: the answer alone, as a policy without the tool gives it.
    """
    return [_demonstration(mark, size, zooms) for mark in marks("train", num_rows, seed)]


def _demonstration(mark: Mark, size: int, zooms: bool) -> dict[str, Any]:
    tools = MarkTools()
    whole = Image.open(io.BytesIO(mark.png(size)))
    tools.reset(images=[whole])
    asked = {"role": "user", "content": [{"type": "image", "image": whole}, {"type": "text", "text": QUESTION}]}
    answered = {"role": "assistant", "content": [{"type": "text", "text": mark.first}]}
    if not zooms:
        return {"messages": [asked, answered]}
    call = {"type": "function", "function": {"name": "zoom", "arguments": mark.region}}
    messages: Sequence[dict[str, Any]] = [
        asked,
        {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [call]},
        {"role": "tool", "name": "zoom", "content": tools.zoom(**mark.region)},
        answered,
    ]
    return {"messages": list(messages), "tools": Environments(None, MarkTools).schemas[None]}
