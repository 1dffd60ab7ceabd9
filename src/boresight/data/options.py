"""The options of the data room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataConfig:
    """How rows become groups."""

    min_pixels: int | None = field(
        default=None, metadata={"help": "Smallest area an image is resized to, in pixels. None: the processor's own."}
    )
    max_pixels: int | None = field(
        default=None,
        metadata={
            "help": "Largest area an image is resized to, in pixels, for training and sampling alike. None: the "
            "processor's own."
        },
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of the chat template, such as {'enable_thinking': false}."}
    )
    shuffle_dataset: bool = field(
        default=True, metadata={"help": "Draw the training rows in a new random order each epoch."}
    )
