"""Images with a few words under each, as notebooks show them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

CHARACTERS = 40
"""The most that fit into a line above an image."""


def image_of(row: Mapping[str, Any]) -> Image.Image:
    """The image of a row as `datasets` stores it: encoded bytes in its column `image`."""
    return Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")


def show_images(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], *, columns: int = 4) -> None:
    """Draw the rows' images in a grid, each with its text, by matplotlib.

    Args:
        rows: with an image each: see `image_of`.
        texts: one for each row.
        columns: images in a line.
    """
    import matplotlib.pyplot as plt  # an extra that only notebooks need

    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.1 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, row, text in zip(axes.flat, rows, texts, strict=False):
        axis.imshow(image_of(row))
        axis.set_title("\n".join(textwrap.fill(line, CHARACTERS) for line in text.splitlines()), fontsize=8)
    figure.tight_layout()
    plt.show()
