"""Formats in which people have their rows, each converted to the columns that `read_row` knows.

A format is a row of the table `FORMATS`: what it reads, what it gives, how it is recognised, and a pure function that converts one record.
Formats are tried in order, and several may apply to one record: JSON text is parsed before its conversations are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boresight.data.json_text import parsed_columns, without_padding
from boresight.errors import DataError

Record = dict[str, Any]

CONVERSATIONS = ("conversations", "conversation")
ANSWERS = ("completion", "chosen", "rejected")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "developer": "developer",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}
"""ShareGPT's names of speakers → roles."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format of rows."""

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    converts: Callable[[Record, str], Record]
    """The record, and what an error calls its row → the record in other columns."""
    reads: tuple[str, ...] = ()
    """Columns that it replaces. Empty: it changes values, and no column's name."""
    gives: tuple[str, ...] = ()
    """Columns that it adds, those of TRL's formats."""


def converted(record: Mapping[str, Any], where: str) -> Record:
    """The record in TRL's formats.

    Args:
        where: what an error calls the row.

    Raises:
        DataError: a value looks like one of the formats and cannot be read as it.
    """
    result = dict(record)
    for form in FORMATS:
        if form.recognises(result):
            result = form.converts(result, where)
    return result


def columns_given(found: Collection[str]) -> set[str]:
    """The columns that rows with these columns have after conversion."""
    names = set(found)
    for form in FORMATS:
        if form.reads and set(form.reads) <= names:
            names |= set(form.gives)
    return names


# ---- ShareGPT and LLaVA --------------------------------------------------------------------------------------------------------------


def _has_conversations(record: Mapping[str, Any]) -> bool:
    return any(isinstance(record.get(name), list | tuple) for name in CONVERSATIONS) and record.get("messages") is None


def _from_conversations(record: Record, where: str) -> Record:
    """The conversation as `messages`; as `prompt` where chosen and rejected answers stand beside it."""
    name = next(name for name in CONVERSATIONS if isinstance(record.get(name), list | tuple))
    turns = [_message(turn, f"{where}, {name}[{place}]") for place, turn in enumerate(record.pop(name))]
    system = record.pop("system", None)
    if isinstance(system, str) and system.strip():
        turns.insert(0, {"role": "system", "content": system})
    if record.get("chosen") is None or record.get("rejected") is None:
        return {**record, "messages": turns}
    answers = {name: _answer(record[name], f"{where}, {name}") for name in ("chosen", "rejected")}
    return {**record, "prompt": turns, **answers}


def _answer(value: Any, where: str) -> list[Any]:
    turns = [value] if isinstance(value, Mapping) else value
    if isinstance(turns, str):
        return [{"role": "assistant", "content": turns}]
    if not isinstance(turns, list | tuple):
        raise DataError(f"{where}: a {type(turns).__name__} is neither a string nor a list of messages.")
    return [_message(turn, where) for turn in turns]


_SPOKEN = ("messages", "prompt", *ANSWERS)


def _has_speakers(record: Mapping[str, Any]) -> bool:
    return any(_first_key(record.get(name), "from") for name in _SPOKEN)


def _from_speakers(record: Record, where: str) -> Record:
    spoken = {name: record[name] for name in _SPOKEN if _first_key(record.get(name), "from")}
    turns = {
        name: [_message(turn, f"{where}, {name}[{place}]") for place, turn in enumerate(value)]
        for name, value in spoken.items()
    }
    return {**record, **turns}


def _first_key(value: Any, key: str) -> bool:
    """Whether this is a list of mappings with the key."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping) and key in value[0]


def _message(turn: Any, where: str) -> Any:
    """A turn of ShareGPT (`from`, `value`) as a message; a message as it is."""
    if not isinstance(turn, Mapping) or turn.get("from") is None:
        return turn
    speaker, said = str(turn["from"]), turn.get("value")
    if speaker.lower() not in _SPEAKERS:
        raise DataError(f"{where}: the speaker {speaker!r} is none of {', '.join(_SPEAKERS)}. Rename it.")
    if not isinstance(said, str):
        raise DataError(f"{where}: the turn has no text under 'value'.")
    if speaker.lower() == "function_call":
        return {"role": "assistant", "tool_calls": [_call(call) for call in _calls(said, where)]}
    return {"role": _SPEAKERS[speaker.lower()], "content": said}


def _calls(said: str, where: str) -> list[Any]:
    parsed = parsed_columns({"tools": said}, where)["tools"]
    return parsed if isinstance(parsed, list) else [parsed]


def _call(call: Any) -> dict[str, Any]:
    return call if isinstance(call, Mapping) and "function" in call else {"type": "function", "function": call}  # pyright: ignore[reportReturnType]


# ---- The Cauldron --------------------------------------------------------------------------------------------------------------------


def _has_texts(record: Mapping[str, Any]) -> bool:
    return _first_key(record.get("texts"), "user") and record.get("messages") is None


def _from_texts(record: Record, where: str) -> Record:
    turns = []
    for place, turn in enumerate(record.pop("texts")):
        if not isinstance(turn, Mapping):
            raise DataError(
                f"{where}, texts[{place}]: a turn is a mapping with 'user' and 'assistant', not a {type(turn).__name__}."
            )
        turns += [{"role": role, "content": turn[role]} for role in ("user", "assistant") if turn.get(role) is not None]
    return {**record, "messages": turns}


# ---- Questions beside their answers --------------------------------------------------------------------------------------------------


def _has_problem(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("problem"), str) and all(record.get(name) is None for name in ("messages", "prompt"))


def _from_problem(record: Record, where: str) -> Record:
    """multimodal-open-r1, R1-V (`problem`, `solution`) and Geometry3K (`problem`, `answer`)."""
    record["prompt"] = [{"role": "user", "content": record.pop("problem")}]
    if record.get("solution") is None and record.get("answer") is not None:
        record["solution"] = record["answer"]
    return _answers_spoken(record)


def _has_judged_question(record: Mapping[str, Any]) -> bool:
    strings = all(isinstance(record.get(name), str) for name in ("question", "chosen", "rejected"))
    return strings and all(record.get(name) is None for name in ("messages", "prompt"))


def _from_judged_question(record: Record, where: str) -> Record:
    """RLAIF-V: `question`, `chosen`, `rejected`."""
    record["prompt"] = [{"role": "user", "content": record.pop("question")}]
    return _answers_spoken(record)


def _answers_spoken(record: Record) -> Record:
    said = {name: record[name] for name in ANSWERS if isinstance(record.get(name), str)}
    return {**record, **{name: [{"role": "assistant", "content": text}] for name, text in said.items()}}


def _always(record: Mapping[str, Any]) -> bool:
    return True


def _unpadded(record: Record, where: str) -> Record:
    tools = record.get("tools")
    return record if tools is None else {**record, "tools": without_padding(tools)}


FORMATS: Sequence[Format] = (
    Format("null keys that Arrow adds", _always, _unpadded),
    Format("values stored as JSON text", _always, parsed_columns),
    Format("ShareGPT and LLaVA", _has_conversations, _from_conversations, ("conversations",), ("messages",)),
    Format("ShareGPT's turns under TRL's names", _has_speakers, _from_speakers),
    Format("The Cauldron", _has_texts, _from_texts, ("texts",), ("messages",)),
    Format("multimodal-open-r1, R1-V, Geometry3K", _has_problem, _from_problem, ("problem",), ("prompt", "solution")),
    Format(
        "RLAIF-V",
        _has_judged_question,
        _from_judged_question,
        ("question", "chosen", "rejected"),
        ("prompt",),
    ),
)
