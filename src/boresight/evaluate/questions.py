"""A benchmark's messages as a row, with its images or blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from boresight.data.images import load_image
from boresight.errors import ConfigError, DataError
from boresight.types import EncodedImage, Row

GRAY = (128, 128, 128)
"""The color of every pixel of a blind question's images."""


def row_of(
    messages: Sequence[Mapping[str, Any]],
    number: int,
    task: str,
    *,
    blind: bool = False,
    system_prompt: str | None = None,
) -> Row:
    """A question as a row, its parts in the task's order.

    Args:
        messages: as lmms-eval's tasks write them: ``{"role": …, "content": [{"type": "image", "url": …}, {"type": "text", "text": …}]}``;
            an image is a PIL image or a path.
        number: of the question in the task's data set.
        task: its name, for errors.
        blind: replace each image by a plain gray one of the same size. Everything else stays, the number of image tokens too.
        system_prompt: the system message, in place of the task's own if it has one.

    Raises:
        ConfigError: the question has a video or audio.
        DataError: the question has no message, or an image cannot be read.
    """
    where = f"task {task}, question {number}"
    if not messages:
        raise DataError(f"{where}: there is no message.")
    images: list[EncodedImage] = []
    prompt: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        prompt.append({"role": message["role"], "content": [_part(part, images, where, blind) for part in parts]})
    if system_prompt is not None:
        own = [{"type": "text", "text": system_prompt}]
        prompt = [{"role": "system", "content": own}, *(each for each in prompt if each["role"] != "system")]
    return Row(index=number, prompt=prompt, completions=(), images=tuple(images), columns={})


def _part(part: Mapping[str, Any], images: list[EncodedImage], where: str, blind: bool) -> dict[str, Any]:
    """A part of a message; its image is added to `images`."""
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind != "image":
        raise ConfigError(
            f"{where} has {kind}, and boresight asks about images and text: leave the task out of --tasks."
        )
    image = load_image(part["url"], where=f"{where}, image {len(images)}")
    if blind:
        image = load_image(Image.new("RGB", image.size, GRAY), where=where)
    images.append(image)
    return {"type": "image"}
