"""Values that tables store as text because they cannot store them otherwise: conversations, tools, lists of images."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from boresight.errors import DataError

_SPOKEN = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "texts")
"""Columns that may hold a conversation as text."""
_NEVER_TEXT = ("messages", "conversations")
"""Those of them that hold nothing else."""
_SPEAKER = {"role", "from", "user"}
"""Keys of which every message has one. A list of other mappings, such as boxes, is an answer in JSON."""
_SETTINGS = {"tools": list, "chat_template_kwargs": dict}
"""Columns that reach the chat template, and what they hold."""


def parsed_columns(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record with the text parsed in the columns that hold something other than text.

    Conversations, tools, template variables and lists of images may be stored as JSON, or as Python writes them (what pandas puts into a
    CSV). A prompt or an answer is only parsed where it is a list of messages.

    Raises:
        DataError: the text of a column that never holds text cannot be parsed.
    """
    result = dict(record)
    for name in _SPOKEN:
        if isinstance(result.get(name), str):
            result[name] = _conversation(result[name], name, where)
    for name, kind in _SETTINGS.items():
        value = result.get(name)
        if isinstance(value, list) and any(isinstance(item, str) for item in value):
            result[name] = [_setting(item, name, dict, where) if isinstance(item, str) else item for item in value]
        elif isinstance(value, str):
            result[name] = _setting(value, name, kind, where)
    for name in ("image", "images"):
        value = result.get(name)
        if isinstance(value, str) and value.lstrip()[:2] in ('["', "['", "[]", "[{"):
            found = _value(value)
            result[name] = found if isinstance(found, list) else value
    return result


def without_padding(value: Any) -> Any:
    """The value without the keys that are None in its mappings: Arrow gives every mapping of a column the keys of all the others."""
    match value:
        case Mapping():
            return {key: without_padding(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [without_padding(item) for item in value]
    return value


def with_arguments(call: Any) -> Any:
    """A tool call whose arguments are a mapping, as chat templates need them. OpenAI stores them as JSON text."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    arguments = call["function"].get("arguments")
    found = _value(arguments) if isinstance(arguments, str) else arguments
    return {**call, "function": {**call["function"], "arguments": found}} if isinstance(found, Mapping) else call


def _conversation(text: str, name: str, where: str) -> Any:
    if not text.strip() and name in _NEVER_TEXT:
        return None
    found = _value(text) if text.lstrip()[:1] == "[" else None
    if (
        isinstance(found, list)
        and found
        and all(isinstance(item, Mapping) and _SPEAKER & item.keys() for item in found)
    ):
        return found
    if name in _NEVER_TEXT:
        raise DataError(
            f"{where}: {name} holds text, {_shown(text)}, and it is not the JSON of a list of messages. Store the list itself, or its "
            "JSON; a row of plain text goes into the column 'text', or into 'prompt' and 'completion'."
        )
    return text


def _setting(text: str, name: str, kind: type, where: str) -> Any:
    if not text.strip():
        return None
    found = _value(text)
    if not isinstance(found, list | dict) or (kind is dict and not isinstance(found, dict)):
        expected = "a list of tools" if kind is list else "an object"
        raise DataError(f"{where}: {name} holds text, {_shown(text)}, and it is not the JSON of {expected}.")
    return [found] if kind is list and isinstance(found, dict) else found


def _value(text: str) -> Any:
    """The value that the text writes in JSON or in Python; None where it writes none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
