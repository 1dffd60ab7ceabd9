"""What is not wrong with a row, but may not be meant: it is reported before training, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boresight.data.image_columns import looks_like
from boresight.data.schema import TOKENS
from boresight.data.texts import Texts, joined
from boresight.types import Conversation, Group, Row


def row_findings(row: Row) -> list[str]:
    """What should be reported of a row, each with the words by which rows are counted."""
    found = [
        f"the column {name!r} looks like {kind}s, which the model does not see"
        for name, value in row.columns.items()
        if (kind := looks_like(value)) is not None
    ]
    found += [f"an image is {image.remark}" for image in row.images if image.remark is not None]
    if row.prompt and _is_blank(row.prompt):
        found.append("the question is empty")
    if TOKENS not in row.columns and any(_is_empty_answer(completion) for completion in row.completions):
        found.append("an answer is empty")
    solution = row.columns.get("solution")
    if isinstance(solution, str) and not solution.strip():
        found.append("the solution is blank")
    return list(dict.fromkeys(found))


def control_findings(row: Row, control: Sequence[str]) -> list[str]:
    """Special tokens that the texts of users, tools and systems contain.

    Args:
        control: the tokenizer's special tokens, such as the one that ends a turn.
    """
    if isinstance(row.prompt, str):
        return []  # plain text is passed as it is, and may be a rendered template
    said = [message for message in _messages(row) if message["role"] != "assistant"]
    texts = [part["text"] for message in said for part in message["content"] if part["type"] == "text"]
    return [
        f"a text of a user contains {token!r}, which acts as the chat template's own"
        for token in control
        if any(token in text for text in texts)
    ]


def rewriting_findings(row: Row, group: Group, texts: Texts) -> list[str]:
    """How a demonstration is learned whose chat template rewrites earlier turns.

    Args:
        group: as which it is learned.
        texts: of the encoder.
    """
    if len(row.completions) != 1 or isinstance(row.completions[0], str):
        return []
    if len(group) > 1:
        return [
            "the chat template rewrites earlier turns of the assistant's, such as their thinking: each turn is learned as it was "
            "rendered when it was written, in branches that share the prompt"
        ]
    num_turns = sum(message["role"] == "assistant" for message in row.completions[0])
    if num_turns < 2 or not texts.rewrites(row, joined(row.prompt, row.completions[0])):
        return []
    return [
        "the chat template rewrites earlier turns of the assistant's, such as their thinking, and they are learned as it rewrites them: "
        "set assistant_only_loss=True to learn each turn as it was rendered when it was written"
    ]


def _messages(row: Row) -> list[Mapping[str, Any]]:
    conversations = [row.prompt, *row.completions]
    return [message for conversation in conversations if not isinstance(conversation, str) for message in conversation]


def _is_blank(prompt: str | Conversation) -> bool:
    """Whether what was asked last is blank. A message of images alone is not: nobody left its text out by mistake."""
    if isinstance(prompt, str):
        return not prompt.strip()
    parts = prompt[-1]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return not "".join(texts).strip() and (bool(texts) or not parts)


def _is_empty_answer(completion: str | Conversation) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return any(
        message["role"] == "assistant" and not message.get("tool_calls") and not _text([message])
        for message in completion
    )


def _text(said: Conversation) -> str:
    """The text without white space around it; an image counts as text."""
    parts = [part for message in said for part in message["content"]]
    return "".join(part["text"] if part["type"] == "text" else part["type"] for part in parts).strip()
