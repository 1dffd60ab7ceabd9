"""`<image>` in a text: the mark that ShareGPT, LLaVA, verl and others put where an image belongs.

A mark is converted in every text, whatever the model's own mark is. One that cannot be converted is an error, because the model would read
it as a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from boresight.errors import DataError, ImageError

MARK = "<image>"

_STANDS_ALONE = re.compile(r"^[ \t]*<(image|video|audio)>|<(image|video|audio)>[ \t]*$", re.MULTILINE)
"""A mark at the start or the end of a line stands for an image; inside a sentence it may be spoken of."""
_NUMBERED = re.compile(r"<(?:image|img|picture)[ _-]?\d+>", re.IGNORECASE)

WAY_OUT = f"Write {MARK} once for each image, or nowhere: the images are then put before the first user's text."


def put_images(conversations: Sequence[Sequence[dict[str, Any]]], num_images: int, where: str) -> None:
    """Make image parts in conversations of explicit parts, in place, so that there is one for each image of the image columns.

    Messages say in `was_string` whether they were plain strings; it is removed.

    Args:
        num_images: images that have no part of their own yet.

    Raises:
        ImageError: marks or parts, and images, differ in number.
        DataError: a mark stands for a video.
    """
    messages = [message for conversation in conversations for message in conversation]
    first = next((message for message in messages if message["role"] == "user" and message["was_string"]), None)
    for message in messages:
        del message["was_string"]
    num_parts = sum("image" not in part for part in image_parts(conversations))
    num_marks = sum(part["text"].count(MARK) for message in messages for part in _texts(message))
    if num_marks and num_parts + num_marks == num_images:
        for message in messages:
            message["content"] = [piece for part in message["content"] for piece in _split(part)]
    elif num_images and num_parts == num_marks == 0 and first is not None and not any(image_parts(conversations)):
        first["content"][:0] = [{"type": "image"} for _ in range(num_images)]
    elif num_parts != num_images:
        marks = f" and {num_marks} mark(s) {MARK}" if num_marks else ""
        raise ImageError(
            f"{where}: {num_images} image(s) in the image columns, but {num_parts} image part(s) without an image of their own{marks} in "
            f"the messages. {WAY_OUT}"
        )
    for message in messages:
        for part in _texts(message):
            check_text(part["text"], where, num_images=num_images)


def check_text(text: str, where: str, *, num_images: int) -> None:
    """Check that no mark is left in a text where it would be read as a word.

    Raises:
        ImageError: a mark of an image is left.
        DataError: a mark of a video or a sound is left.
    """
    if found := _STANDS_ALONE.search(text):
        kind = found[1] or found[2]
        if kind != "image":
            raise DataError(f"{where}: the text has the mark <{kind}>, and {kind} is not supported. Drop the row.")
        raise ImageError(
            f"{where}: the text has the mark {MARK}, and no image is left for it ({num_images} in the image columns). {WAY_OUT}"
        )
    if num_images and (numbered := _NUMBERED.search(text)):
        raise ImageError(
            f"{where}: the text has the mark {numbered[0]!r}; marks with numbers are not read. Write {MARK} at each place, the images in "
            "the order of the marks."
        )


def check_string(text: str, where: str, *, num_images: int) -> None:
    """Check the marks of a plain-text prompt, which the encoder replaces.

    Raises:
        ImageError: marks and images differ in number.
        DataError: a mark of a video or a sound is left.
    """
    num_marks = text.count(MARK)
    if num_marks and num_images and num_marks != num_images:
        raise ImageError(f"{where}: {num_marks} mark(s) {MARK} in the prompt for {num_images} image(s). {WAY_OUT}")
    check_text(text.replace(MARK, "") if num_images else text, where, num_images=num_images)


def image_parts(conversations: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """The image parts of conversations of explicit parts, in order."""
    for conversation in conversations:
        for message in conversation:
            yield from (part for part in message["content"] if part["type"] == "image")


def _texts(message: Any) -> list[dict[str, Any]]:
    return [part for part in message["content"] if part["type"] == "text"]


def _split(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A text part as texts with an image part for each mark; any other part as it is."""
    if part["type"] != "text" or MARK not in part["text"]:
        yield part
        return
    for place, piece in enumerate(part["text"].split(MARK)):
        if place:
            yield {"type": "image"}
        if piece:
            yield {"type": "text", "text": piece}
