"""The options of the data room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.options import Range, option


@dataclass
class DataOptions:
    """How rows become groups."""

    heading: ClassVar[str] = "data"

    min_pixels: Annotated[int | None, Range(at_least=1)] = option(
        None, "Smallest area an image is resized to, in pixels. None: the processor's default."
    )
    max_pixels: Annotated[int | None, Range(at_least=1)] = option(
        None,
        "Largest area an image is resized to, in pixels, for training and sampling. None: the processor's default.",
    )
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None, "Additional arguments of the chat template, such as {'enable_thinking': false}."
    )
    on_bad_row: Literal["error", "drop", "keep_text"] = option(
        "error",
        "What becomes of rows that cannot be used: error: training does not start; drop: they are left out; keep_text: rows with a bad "
        "image are learned from without their images, and other bad rows are left out. Both are listed in RUN/quarantine.jsonl.",
    )
    shuffle_dataset: bool = option(True, "Shuffle the training rows before each epoch.")
