"""The calls in what a policy wrote.

Where the tokenizer can parse its own model's form (transformers' `parse_response`), it does. Two forms are read here: Hermes' and Qwen's
JSON, and the tags of Qwen3-Coder and Qwen3.5:

    <tool_call>                                      <tool_call>
    {"name": "zoom", "arguments": {"x": 3}}          <function=zoom>
    </tool_call>                                     <parameter=x>3</parameter>
                                                     </function>
                                                     </tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>(.*?)</parameter>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call, or what stands in the place of one and cannot be read."""

    name: str
    """"unknown" where it cannot be read."""
    arguments: Mapping[str, Any]
    error: str | None = None
    """Why it cannot be read; None: it can."""

    @property
    def as_message_part(self) -> dict[str, Any]:
        """As an entry of a message's `tool_calls`."""
        return {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What a policy wrote in one turn."""

    content: str
    """The text outside its calls."""
    calls: tuple[ToolCall, ...]

    @property
    def message(self) -> dict[str, Any]:
        """As a message, as TRL passes it to reward functions."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        calls = [call.as_message_part for call in self.calls if call.error is None]
        return message | ({"tool_calls": calls} if calls else {})


def parsed_text(text: str, schemas: Sequence[Mapping[str, Any]] = ()) -> ParsedTurn:
    """The calls in a text of Hermes' or Qwen's form.

    Args:
        text: without the tokens that end a turn.
        schemas: of the tools, which decide about the types of arguments in tags.
    """
    calls = tuple(_call(match[1], match[2] == CLOSE, schemas) for match in _BLOCK.finditer(text))
    return ParsedTurn(_BLOCK.sub("", text).strip() if calls else text, calls)


def _call(body: str, closed: bool, schemas: Sequence[Mapping[str, Any]]) -> ToolCall:
    if not closed:
        return _unreadable(f"the call is not closed by {CLOSE}")
    if tagged := _FUNCTION.fullmatch(body):
        given = {name: value.strip("\n") for name, value in _PARAMETER.findall(tagged[2])}
        types = _types(tagged[1], schemas)
        return ToolCall(tagged[1], {name: _typed(value, types.get(name)) for name, value in given.items()})
    try:
        return from_record(json.loads(body))
    except (ValueError, RecursionError) as error:
        return _unreadable(f"the call is not valid JSON: {error}")


def from_record(record: Any) -> ToolCall:
    """A call as transformers and JSON give it: a name with arguments, by itself or under `function`."""
    if isinstance(record, Mapping) and isinstance(record.get("function"), Mapping):
        record = record["function"]
    if not isinstance(record, Mapping) or not isinstance(record.get("name"), str):
        return _unreadable('a call is {"name": …, "arguments": {…}}')
    arguments = record.get("arguments", {})
    if isinstance(arguments, str):  # some models write their arguments as JSON in a string
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return _unreadable(f"the arguments of {record['name']} are not valid JSON: {error}")
    if not isinstance(arguments, Mapping):
        return _unreadable(f"the arguments of {record['name']} are no object")
    return ToolCall(record["name"], dict(arguments))


def _unreadable(reason: str) -> ToolCall:
    return ToolCall("unknown", {}, error=reason)


def _types(name: str, schemas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    for schema in schemas:
        if schema["function"]["name"] == name:
            properties = schema["function"].get("parameters", {}).get("properties", {})
            return {key: value.get("type") for key, value in properties.items()}
    return {}


def _typed(value: str, kind: Any) -> Any:
    """An argument in tags: a text stays one, anything else is read as JSON where it can be."""
    if kind == "string":
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def parsed_turn(
    tokenizer: Any,
    ids: Sequence[int],
    prefix: Sequence[int],
    schemas: Sequence[Mapping[str, Any]],
    stop_ids: Sequence[int],
) -> ParsedTurn:
    """The calls in what a policy sampled.

    Args:
        tokenizer: with a `response_template`, its own parser reads calls; what it cannot read is left to `parsed_text`.
        ids: of the turn, its end token included.
        prefix: of everything before it.
        schemas: of the tools.
        stop_ids: the tokens that end a turn, which are no text.
    """
    kept = [id for place, id in enumerate(ids) if place < len(ids) - 1 or id not in stop_ids]
    text: str = tokenizer.decode(kept, skip_special_tokens=False)
    if getattr(tokenizer, "response_template", None) is not None:
        try:
            found = tokenizer.parse_response(list(ids), prefix=list(prefix), tools=list(schemas))
            if found.get("tool_calls") or OPEN not in text:
                calls = tuple(from_record(call) for call in found.get("tool_calls") or ())
                content = found.get("content") or ""
                return ParsedTurn(content.removesuffix(tokenizer.eos_token or ""), calls)
        except (ValueError, TypeError, AttributeError):
            pass  # a malformed call: it is described below
    parsed = parsed_text(text, schemas)
    if not parsed.calls:
        return ParsedTurn(tokenizer.decode(kept, skip_special_tokens=True), ())
    return parsed
