"""One record of a data set → `Row`: TRL's formats, with explicit content parts and one part per image.

Other formats are converted first (`formats`), and marks in texts become parts (`marks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from boresight.data.formats import CONVERSATIONS, converted
from boresight.data.image_columns import IMAGE_COLUMNS, column_images
from boresight.data.images import load_image
from boresight.data.json_text import with_arguments, without_padding
from boresight.data.marks import MARK, check_string, image_parts, put_images
from boresight.errors import DataError, ImageError, nearest
from boresight.types import EncodedImage, Message, Row

TEXT_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
CONVERSATION_COLUMNS = (*TEXT_COLUMNS, *CONVERSATIONS)
"""Columns whose content parts may hold images."""
_FORMATS = (
    ("messages",),
    ("text",),
    ("prompt",),
    ("prompt", "completion"),
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
)
TOKENS = "input_ids"
"""The column of a row that is token ids already."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
_IMAGE_TYPES = ("image", "image_url")
IMAGE_KEYS = ("image", "path", "url", "bytes")


def read_row(record: Mapping[str, Any], index: int) -> Row:
    """One record, validated: TRL's data set formats, with the images in the order of their placeholders.

    | columns | meaning |
    |---|---|
    | `messages` | the whole conversation is the one completion |
    | `text` | a plain text, all of which is the one completion |
    | `prompt` | a conversation or a string, to be completed |
    | `prompt`, `completion` | the demonstration |
    | `prompt`, `chosen`, `rejected` | a preference |
    | `chosen`, `rejected` | two conversations; the messages they share at the start are the prompt. Of two strings, the words they share |
    | `input_ids` | token ids, for SFT (`pretokenised`) |

    Images come from `image` or `images` (None, [] or no such column: none) and from content parts that carry their
    own (``{"type": "image", "image": …}``). They go, in order, to the content parts without an image of their own and
    to the marks ``<image>`` in texts, which must be as many; where there is neither, they are put before the text of
    the first user message whose content is a string, as TRL does. A string prompt is left as it is: placeholders are
    the encoder's. Further columns are kept untouched.

    Rows in other formats are converted first: `data.formats` lists them.

    Raises:
        DataError: the columns, roles or contents make no row.
        ImageError: an image is missing, broken, too large, miscounted, or inside one of several completions.
    """
    where = f"row {index}"
    record = converted(record, where)
    texts = {name: record[name] for name in TEXT_COLUMNS if record.get(name) is not None}
    if not texts and isinstance(record.get("text"), str):
        texts = {"text": record.pop("text")}
    if not texts and record.get(TOKENS) is not None:
        columns = {name: value for name, value in record.items() if name not in (*TEXT_COLUMNS, *IMAGE_COLUMNS)}
        # The one completion has no text of its own: `pretokenised` reads the ids.
        return Row(index, [], ("",), tuple(column_images(record, where)), columns)
    if tuple(texts) not in _FORMATS:
        raise DataError(_unknown_format(record, tuple(texts), where))
    supply = column_images(record, where)
    columns = {name: value for name, value in record.items() if name not in (*TEXT_COLUMNS, *IMAGE_COLUMNS)}
    strings = [name for name, value in texts.items() if isinstance(value, str)]
    if not strings:
        prompt, completions, images = _conversations(texts, supply, where)
    elif len(strings) == len(texts) and ("prompt" in texts or "text" in texts):
        prompt, completions, images = _strings(texts, supply, where)
    elif tuple(strings) == ("chosen", "rejected"):
        prompt, completions, images = _strings(_with_shared_text(texts, where), supply, where)
    elif len(strings) == len(texts):
        raise DataError(f"{where}: {' and '.join(strings)} of plain strings need a prompt column beside them.")
    else:
        raise DataError(
            f"{where}: {', '.join(strings)} is a string and {', '.join(texts.keys() - set(strings))} is not. "
            'Write all as strings, or all as conversations, such as [{"role": "assistant", "content": "…"}].'
        )
    return Row(index=index, prompt=prompt, completions=completions, images=tuple(images), columns=columns)


def map_images(record: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The record with every value that `read_row` takes for an image replaced by what `change` makes of it."""

    def changed_message(message: Any) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):
            return message
        return {**message, "content": [_changed_part(part, change) for part in content]}

    result = dict(record)
    for name in IMAGE_COLUMNS:
        value = record.get(name)
        if isinstance(value, list | tuple):
            result[name] = [item if item is None else change(item) for item in value]
        elif value is not None:
            result[name] = change(value)
    for name in CONVERSATION_COLUMNS:
        if isinstance(record.get(name), list | tuple):
            result[name] = [changed_message(message) for message in record[name]]
    return result


def _changed_part(part: Any, change: Callable[[Any], Any]) -> Any:
    if not isinstance(part, Mapping) or part.get("type") not in _IMAGE_TYPES:
        return part
    result = {key: change(value) if key in IMAGE_KEYS and value is not None else value for key, value in part.items()}
    match part.get("image_url"):
        case str() as address:
            result["image_url"] = change(address)
        case Mapping() as given if given.get("url") is not None:
            result["image_url"] = {**given, "url": change(given["url"])}
    return result


def without_images(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record without its images, their content parts and their marks."""

    def changed_message(message: Any) -> Any:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            return {**message, "content": content.replace(MARK, "")}
        if not isinstance(content, list | tuple):
            return message
        parts = [part for part in content if not isinstance(part, Mapping) or part.get("type") not in _IMAGE_TYPES]
        return {**message, "content": parts or ""}

    result = converted(record, where) | dict.fromkeys(IMAGE_COLUMNS)
    for name in (*TEXT_COLUMNS, "text"):
        value = result.get(name)
        if isinstance(value, str):
            result[name] = value.replace(MARK, "")
        elif isinstance(value, list | tuple):
            result[name] = [changed_message(message) for message in value]
    return result


def part_images(conversation: Sequence[Message]) -> int:
    """How many image parts a conversation of explicit parts has."""
    return sum(1 for _ in image_parts([conversation]))


def _strings(
    texts: Mapping[str, str], supply: list[EncodedImage], where: str
) -> tuple[str | list[Any], tuple[str, ...], list[EncodedImage]]:
    """Prompt, completions and images of a row of plain text."""
    name = "text" if "text" in texts else "prompt"
    for column, text in texts.items():
        _check_encodable(text, f"{where}, {column}")
    if not texts[name].strip() and not supply:
        raise DataError(f"{where}: the {name} is empty.")
    check_string(texts[name], where, num_images=len(supply))
    if name == "text":
        return [], (texts["text"],), supply
    return texts["prompt"], tuple(text for column, text in texts.items() if column != "prompt"), supply


def _conversations(
    texts: Mapping[str, Any], supply: list[EncodedImage], where: str
) -> tuple[Any, tuple[Any, ...], list[EncodedImage]]:
    parsed = {name: _conversation(value, f"{where}, {name}") for name, value in texts.items()}
    if "prompt" in parsed or "messages" in parsed:
        _place(list(parsed.values()), supply, where)
    else:  # each of the two is a whole conversation
        for name, conversation in parsed.items():
            _place([conversation], supply, f"{where}, {name}")
    prompt = parsed.pop("prompt", [])
    if "messages" not in parsed:
        if not prompt:
            prompt = _shared_start(parsed["chosen"], parsed["rejected"], where)
            parsed = {name: conversation[len(prompt) :] for name, conversation in parsed.items()}
        _check_turns(prompt, parsed, where)
    images = [part.pop("image") for part in image_parts([prompt, *parsed.values()])]
    return prompt, tuple(parsed.values()), images


def _place(conversations: list[list[dict[str, Any]]], supply: Sequence[EncodedImage], where: str) -> None:
    """Give every image part its image."""
    for part in image_parts(conversations):
        if (place := part.pop("index", None)) is not None:  # the part names its image by its place in the column
            if place >= len(supply):
                raise ImageError(
                    f"{where}: a content part has the index {place}, and there are {len(supply)} image(s)."
                )
            part["image"] = supply[place]
            part["is_named"] = True
    named = [part for part in image_parts(conversations) if part.pop("is_named", False)]
    rest = [] if named else supply
    put_images(conversations, len(rest), where)
    empty = [part for part in image_parts(conversations) if "image" not in part]
    for part, image in zip(empty, rest, strict=True):
        part["image"] = image


def _check_turns(prompt: list[dict[str, Any]], completions: Mapping[str, list[dict[str, Any]]], where: str) -> None:
    if prompt[-1]["role"] in ("system", "developer"):
        raise DataError(
            f"{where}: the prompt ends with a {prompt[-1]['role']} message, so there is nothing to answer. End it "
            "with a user's."
        )
    for name, conversation in completions.items():
        if conversation[0]["role"] != "assistant":
            raise DataError(
                f"{where}: {name} starts with a message of {conversation[0]['role']!r}. It must hold only what "
                "follows the prompt, starting with the assistant's; where chosen and rejected repeat the prompt, "
                "drop the prompt column."
            )
        if len(completions) > 1 and part_images(conversation):
            raise ImageError(
                f"{where}: {name} has an image. Only the prompt may have images where its completions are compared."
            )


def _shared_start(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = [message for message, _ in pairs]
    if not shared:
        raise DataError(
            f"{where}: chosen and rejected share no message at their start. Give the prompt as a column of its own."
        )
    if len(shared) in (len(chosen), len(rejected)):
        raise DataError(f"{where}: chosen and rejected do not differ by an answer; one is the start of the other.")
    return shared


def _with_shared_text(texts: Mapping[str, str], where: str) -> dict[str, str]:
    """Two strings as prompt, chosen and rejected. They part at white space, which belongs to the answers, never inside a word."""
    chosen, rejected = texts["chosen"], texts["rejected"]
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    shared = "".join(character for character, _ in pairs)
    if shared in (chosen, rejected):
        raise DataError(f"{where}: chosen and rejected do not differ by an answer; one is the start of the other.")
    length = len(re.sub(r"\s+\S*$", "", shared)) if re.search(r"\s", shared) else 0
    if not shared[:length].strip():
        raise DataError(
            f"{where}: chosen and rejected share no word at their start. Give the prompt as a column of its own."
        )
    return {"prompt": shared[:length], "chosen": chosen[length:], "rejected": rejected[length:]}


def _conversation(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: a {type(value).__name__} is neither a string nor a list of messages.")
    if not value:
        raise DataError(f"{where}: the list of messages is empty.")
    return [_message(message, f"{where}[{place}]") for place, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a message is a mapping with 'role' and 'content', not a {type(value).__name__}.")
    message = {str(key): item for key, item in value.items() if item is not None}  # Arrow fills absent keys with None
    if "role" not in message:
        raise DataError(f"{where}: the message has no 'role'.{nearest('role', message)}")
    if message["role"] not in _ROLES:
        raise DataError(
            f"{where}: the role {message['role']!r} is none of "
            f"{', '.join(_ROLES)}.{nearest(str(message['role']), _ROLES)}"
        )
    if "content" not in message and not message.get("tool_calls"):
        raise DataError(f"{where}: the message has no 'content'.{nearest('content', message)}")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], where)
    if "weight" in message:
        message["weight"] = _weight(message, where)
    content = message.get("content", "")
    message["was_string"] = isinstance(content, str)
    if isinstance(content, str):
        _check_encodable(content, where)
    message["content"] = [{"type": "text", "text": content}] if isinstance(content, str) else _parts(content, where)
    return message


def _weight(message: Mapping[str, Any], where: str) -> int:
    """Whether an assistant's message counts in the loss of SFT, as OpenAI writes it: 1 or 0."""
    weight = message["weight"]
    if weight not in (0, 1):
        raise DataError(f"{where}: weight={weight!r}: 1 lets the message count, 0 does not; there is nothing between.")
    if message["role"] != "assistant":
        raise DataError(
            f"{where}: weight belongs to the assistant's messages, and this is the {message['role']}'s: remove it."
        )
    return int(weight)


def _tool_calls(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not all(isinstance(call, Mapping) for call in value):
        raise DataError(
            f"{where}: tool_calls is a list of calls, such as [{{'type': 'function', 'function': {{…}}}}], not a {type(value).__name__}."
        )
    return [with_arguments(call) for call in without_padding(value)]


def _check_encodable(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text has half a character (a lone surrogate) at {error.start}: remove it."
        ) from error


def _parts(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: the content is neither a string nor a non-empty list of parts.")
    return [_part(part, f"{where}.content[{place}]") for place, part in enumerate(value)]


def _part(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a content part is a mapping with 'type', not a {type(value).__name__}.")
    part = {str(key): item for key, item in value.items() if item is not None}
    match part.get("type"):
        case "text":
            if not isinstance(part.get("text"), str):
                raise DataError(f"{where}: the text part has no string under 'text'.")
            _check_encodable(part["text"], where)
            return {"type": "text", "text": part["text"]}
        case "image":
            return _image_part(part, next((part[key] for key in IMAGE_KEYS if key in part), None), where)
        case "image_url":  # OpenAI's
            given = part.get("image_url")
            return _image_part(part, given.get("url") if isinstance(given, Mapping) else given, where)
        case "video" | "audio" as kind:
            raise DataError(f"{where}: {kind} is not supported; only text and images are.")
        case kind:
            raise DataError(
                f"{where}: a content part has the type {kind!r}, not 'text' or "
                f"'image'.{nearest(str(kind), ('text', 'image'))}"
            )


def _image_part(part: Mapping[str, Any], given: Any, where: str) -> dict[str, Any]:
    if given is not None:
        return {"type": "image", "image": load_image(given, where=where)}
    place = part.get("index")
    return {"type": "image"} if not isinstance(place, int) or place < 0 else {"type": "image", "index": place}


def _unknown_format(record: Mapping[str, Any], present: tuple[str, ...], where: str) -> str:
    hints = [
        f"{name!r} is not read.{hint}"
        for name in record
        if name not in TEXT_COLUMNS + IMAGE_COLUMNS
        and (hint := nearest(name.lower(), set(TEXT_COLUMNS) - set(present)))
    ]
    empty = [f"{name!r} is None." for name in TEXT_COLUMNS if name in record and record[name] is None]
    formats = "; ".join(" + ".join(names) for names in _FORMATS)
    found = f"together {', '.join(present)}" if present else "none of the columns to learn from"
    return " ".join(
        [
            f"{where} has {found} (its columns: {', '.join(map(str, record)) or 'none'}). Expected one of: {formats}.",
            *hints,
            *empty,
        ]
    )
