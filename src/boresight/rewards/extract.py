"""The text of a completion, and the answer in it. Imports nothing heavy: reward workers load this and little else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boresight.types import Conversation

LogMetric = Callable[[str, float], None]

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def completion_text(completion: str | Conversation) -> str:
    """The text of a completion in either form, text parts joined."""
    if isinstance(completion, str):
        return completion
    content = completion[0]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def tagged_answer(text: str) -> str | None:
    """The text inside the one ``<answer>…</answer>``; None where there is none, or several: a hedge is no answer."""
    found = ANSWER.findall(text)
    return found[0] if len(found) == 1 else None


def final_answer(text: str) -> str:
    """The tagged answer; without tags, what follows the reasoning."""
    if "<answer>" in text:
        return tagged_answer(text) or ""
    return text.rpartition("</think>")[2]


def normalized(text: str) -> str:
    """Case folded, outer space removed, inner space made single."""
    return " ".join(text.casefold().split())


def log_unparsed(log: LogMetric | None, name: str, answers: Sequence[Any], golds: Sequence[Any]) -> None:
    """Log, as `rewards/<name>/unparsed`, the share of completions with a gold in which a reward found no answer (None)."""
    asked = [answer for answer, gold in zip(answers, golds, strict=True) if gold is not None]
    if log is not None and asked:
        log(f"rewards/{name}/unparsed", sum(answer is None for answer in asked) / len(asked))
