"""What a tool returned, as the content of a message: texts and images in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boresight.tools.running import Outcome
from boresight.types import EncodedImage

LoadImage = Callable[[Any], EncodedImage]
"""From what a tool calls an image to an image whose pixels can be read; raises if they cannot."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one result may hold."""

    max_chars: int
    max_images: int
    """Those that the completion still has room for."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result as a message."""

    outcome: Outcome
    """Its kind is "refused" where the tool returned what cannot be used."""
    parts: tuple[dict[str, Any], ...]
    """Content parts: texts, and `{"type": "image"}` in place of each image."""
    images: tuple[EncodedImage, ...]

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "tool", "name": self.outcome.call.name, "content": [dict(part) for part in self.parts]}


def result_of(outcome: Outcome, load_image: LoadImage, limits: Limits) -> Result:
    """The message of an outcome. A failure, or a value that cannot be used, is a text that says so, as TRL writes it.

    A list of content parts (`{"type": "text", "text": …}`, `{"type": "image", "image": …}`) stays as it is; a PIL image is one of them;
    everything else is its `str`, as in TRL.
    """
    if outcome.kind != "ok":
        return _error(outcome, str(outcome.value))
    try:
        parts, images = _content(outcome.value, load_image, limits)
    except Exception as error:  # an image of any kind, or a `__str__` that raises
        return _error(Outcome(outcome.call, "refused", str(error), outcome.seconds), str(error))
    return Result(outcome, parts, images)


def _error(outcome: Outcome, reason: str) -> Result:
    return Result(outcome, ({"type": "text", "text": str({"error": reason[:1000]})},), ())


def _content(
    value: Any, load_image: LoadImage, limits: Limits
) -> tuple[tuple[dict[str, Any], ...], tuple[EncodedImage, ...]]:
    parts: list[dict[str, Any]] = []
    images: list[EncodedImage] = []
    blocks = _blocks(value)
    if (count := sum(block["type"] == "image" for block in blocks)) > limits.max_images:
        raise ValueError(f"the result has {count} images, and there is room for {limits.max_images}")
    for block in blocks:
        if block["type"] == "image":
            images.append(load_image(block.get("image")))
            parts.append({"type": "image"})
        else:
            parts.append({"type": "text", "text": block["text"]})
    if (count := sum(len(part.get("text", "")) for part in parts)) > limits.max_chars:
        raise ValueError(f"the result has {count:,} characters, and {limits.max_chars:,} are allowed")
    return tuple(parts), tuple(images)


def _blocks(value: Any) -> Sequence[Mapping[str, Any]]:
    if type(value).__module__.startswith("PIL."):
        return [{"type": "image", "image": value}]
    if isinstance(value, list | tuple) and value and all(is_block(item) for item in value):
        return value
    return [{"type": "text", "text": value if isinstance(value, str) else str(value)}]


def is_block(item: Any) -> bool:
    """Whether a value is a content part."""
    if not isinstance(item, Mapping):
        return False
    return item.get("type") == "image" or (item.get("type") == "text" and isinstance(item.get("text"), str))
