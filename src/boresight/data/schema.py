"""One record of a data set → `Row`: TRL's formats, with explicit content parts and one part per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from PIL import Image

from boresight.data.images import load_image
from boresight.errors import DataError, ImageError, nearest
from boresight.types import EncodedImage, Message, Row

TEXT_COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
IMAGE_COLUMNS = ("image", "images")
_FORMATS = (
    ("messages",),
    ("prompt",),
    ("prompt", "completion"),
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
)
_ROLES = ("system", "developer", "user", "assistant", "tool")
_IMAGE_KEYS = ("image", "path", "url", "bytes")
_LITERAL = "<image>"


def read_row(record: Mapping[str, Any], index: int) -> Row:
    """One record, validated: TRL's data set formats, with the images in the order of their placeholders.

    | columns | meaning |
    |---|---|
    | `messages` | the whole conversation is the one completion |
    | `prompt` | a conversation or a string, to be completed |
    | `prompt`, `completion` | the demonstration |
    | `prompt`, `chosen`, `rejected` | a preference |
    | `chosen`, `rejected` | two conversations; the messages they share at the start are the prompt |

    Images come from `image` or `images` (None, [] or no such column: none) and from content parts that carry their
    own (``{"type": "image", "image": …}``). Without a single image part, the images are put before the text of the
    first user message whose content is a string, as TRL does; otherwise the parts without an image of their own take
    them in order, and their counts must agree. A string prompt is left as it is: placeholders are the encoder's.
    Further columns are kept untouched.

    Raises:
        DataError: the columns, roles or contents make no row.
        ImageError: an image is missing, broken, too large, miscounted, or inside one of several completions.
    """
    where = f"row {index}"
    texts = {name: record[name] for name in TEXT_COLUMNS if record.get(name) is not None}
    if tuple(texts) not in _FORMATS:
        raise DataError(_unknown_format(record, tuple(texts), where))
    supply = _column_images(record, where)
    columns = {name: value for name, value in record.items() if name not in (*TEXT_COLUMNS, *IMAGE_COLUMNS)}
    strings = [name for name, value in texts.items() if isinstance(value, str)]
    if not strings:
        prompt, completions, images = _conversations(texts, supply, where)
    elif len(strings) == len(texts) and "prompt" in texts:
        if not texts["prompt"].strip() and not supply:
            raise DataError(f"{where}: the prompt is empty.")
        prompt, images = texts["prompt"], supply
        completions = tuple(value for name, value in texts.items() if name != "prompt")
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

    def changed_part(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") != "image":
            return part
        return {
            key: change(value) if key in _IMAGE_KEYS and value is not None else value for key, value in part.items()
        }

    def changed_message(message: Any) -> Any:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), Sequence | None):
            return message
        content = message.get("content")
        return (
            message
            if isinstance(content, str | None)
            else {**message, "content": [changed_part(part) for part in content]}
        )

    result = dict(record)
    for name in IMAGE_COLUMNS:
        value = record.get(name)
        if isinstance(value, list | tuple):
            result[name] = [item if item is None else change(item) for item in value]
        elif value is not None:
            result[name] = change(value)
    for name in TEXT_COLUMNS:
        if isinstance(record.get(name), list | tuple):
            result[name] = [changed_message(message) for message in record[name]]
    return result


def part_images(conversation: Sequence[Message]) -> int:
    """How many image parts a conversation of explicit parts has."""
    return sum(part["type"] == "image" for message in conversation for part in message["content"])


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
    images = [_take_image(part) for part in _image_parts([prompt, *parsed.values()])]
    return prompt, tuple(parsed.values()), images


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


def _conversation(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: a {type(value).__name__} is neither a string nor a list of messages.")
    if not value:
        raise DataError(f"{where}: the list of messages is empty.")
    return [_message(message, f"{where}[{place}]") for place, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a message is a mapping with 'role' and 'content', not a {type(value).__name__}.")
    message = {key: item for key, item in value.items() if item is not None}  # Arrow fills absent keys with None
    if "role" not in message:
        hint = (
            ' ShareGPT\'s "from" and "value" must be renamed to "role" and "content".'
            if "from" in message
            else nearest("role", message)
        )
        raise DataError(f"{where}: the message has no 'role'.{hint}")
    if message["role"] not in _ROLES:
        raise DataError(
            f"{where}: the role {message['role']!r} is none of "
            f"{', '.join(_ROLES)}.{nearest(str(message['role']), _ROLES)}"
        )
    if "content" not in message and not message.get("tool_calls"):
        raise DataError(f"{where}: the message has no 'content'.{nearest('content', message)}")
    content = message.get("content", "")
    message["was_string"] = isinstance(content, str)
    message["content"] = [{"type": "text", "text": content}] if isinstance(content, str) else _parts(content, where)
    return message


def _parts(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where}: the content is neither a string nor a non-empty list of parts.")
    return [_part(part, f"{where}.content[{place}]") for place, part in enumerate(value)]


def _part(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a content part is a mapping with 'type', not a {type(value).__name__}.")
    part = {key: item for key, item in value.items() if item is not None}
    match part.get("type"):
        case "text":
            if not isinstance(part.get("text"), str):
                raise DataError(f"{where}: the text part has no string under 'text'.")
            return {"type": "text", "text": part["text"]}
        case "image":
            given = [part[key] for key in _IMAGE_KEYS if key in part]
            return {"type": "image", "image": load_image(given[0], where=where)} if given else {"type": "image"}
        case "image_url":
            raise DataError(
                f'{where}: parts of type \'image_url\' are not read. Write {{"type": "image", "image": …}} with the '
                "image or its path."
            )
        case "video" | "audio" as kind:
            raise DataError(f"{where}: {kind} is not supported; only text and images are.")
        case kind:
            raise DataError(
                f"{where}: a content part has the type {kind!r}, not 'text' or "
                f"'image'.{nearest(str(kind), ('text', 'image'))}"
            )


def _place(conversations: list[list[dict[str, Any]]], supply: list[EncodedImage], where: str) -> None:
    """Give every image part its image; add parts before the first user's text where there are none."""
    messages = [message for conversation in conversations for message in conversation]
    first = next((message for message in messages if message["role"] == "user" and message["was_string"]), None)
    for message in messages:
        del message["was_string"]
    if supply and first is not None and not any(_image_parts(conversations)):
        if _LITERAL in first["content"][0]["text"]:
            raise ImageError(
                f"{where}: the text contains {_LITERAL!r}, which is not a placeholder. "
                'Remove it (images are put before the text), or write content parts: [{"type": "image"}, {"type": "text", "text": "…"}].'
            )
        first["content"][:0] = [{"type": "image"} for _ in supply]
    empty = [part for part in _image_parts(conversations) if "image" not in part]
    if len(empty) != len(supply):
        raise ImageError(
            f"{where}: {len(supply)} image(s) in the image columns, but {len(empty)} image part(s) without an "
            "image of their own in the messages. Give one part per image, or write the first user message as a "
            "plain string."
        )
    for part, image in zip(empty, supply, strict=True):
        part["image"] = image


def _image_parts(conversations: Sequence[Sequence[Message]]) -> Iterator[dict[str, Any]]:
    for conversation in conversations:
        for message in conversation:
            yield from (part for part in message["content"] if part["type"] == "image")


def _take_image(part: dict[str, Any]) -> EncodedImage:
    return part.pop("image")


def _column_images(record: Mapping[str, Any], where: str) -> list[EncodedImage]:
    given = [name for name in IMAGE_COLUMNS if not _is_empty(record.get(name))]
    if len(given) == 2:
        raise ImageError(f"{where}: both 'image' and 'images' hold images. Keep one of the two columns.")
    if not given:
        _check_other_columns(record, where)
        return []
    value = record[given[0]]
    if isinstance(value, list | tuple):
        return [load_image(item, where=f"{where}, {given[0]}[{place}]") for place, item in enumerate(value)]
    return [load_image(value, where=f"{where}, {given[0]}")]


def _check_other_columns(record: Mapping[str, Any], where: str) -> None:
    """An image in a column of another name would be ignored silently."""
    if any(name in record for name in IMAGE_COLUMNS):
        return
    for name, value in record.items():
        item = value[0] if isinstance(value, list | tuple) and value else value
        stored = isinstance(item, Image.Image | EncodedImage | bytes) or (
            isinstance(item, Mapping) and item.keys() == {"bytes", "path"}
        )
        misspelt = (
            isinstance(item, str)
            and nearest(name.lower(), ("image", "images"))
            and Image.registered_extensions().get(_suffix(item))
        )
        if name not in TEXT_COLUMNS and (stored or misspelt):
            raise ImageError(
                f"{where}: the column {name!r} holds an image, but images are read from 'image' or 'images'. "
                "Rename it (or add an 'images' column of None, to train without images on purpose)."
            )


def _suffix(path: str) -> str:
    return f".{path.rpartition('.')[2].lower()}"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple | str) and len(value) == 0)


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
