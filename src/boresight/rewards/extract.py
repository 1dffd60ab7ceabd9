"""The text of a completion, and where its answer stands. Imports nothing heavy: reward workers load this and little else."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boresight.types import Conversation

LogMetric = Callable[[str, float], None]

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def completion_text(completion: str | Conversation) -> str:
    """The text of a completion in either form, text parts joined; of several turns, the text of the last."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def after_reasoning(text: str) -> str:
    """What follows the first ``</think>``; all of the text where there is none.

    The reasoning may mention the tags ("I must write <answer>"), and where the chat template opens ``<think>`` itself, the completion
    begins inside the reasoning.
    """
    _, closed, rest = text.partition("</think>")
    return rest if closed else text


def tagged_answer(text: str) -> str | None:
    """The text inside the one ``<answer>…</answer>`` after the reasoning; None where there is none, or several: a hedge is no answer."""
    rest = after_reasoning(text)
    if rest.count("<answer>") != 1 or rest.count("</answer>") != 1:
        return None
    found = ANSWER.search(rest)
    return found and found[1]


def final_answer(text: str) -> str:
    """The tagged answer; without tags, what follows the reasoning."""
    rest = after_reasoning(text)
    if "<answer>" in rest:
        return tagged_answer(text) or ""
    return rest


def gold_answer(gold: Any) -> str:
    """The answer in a solution, which may carry reasoning and tags as a completion does; all of it where its tags hold no one answer."""
    text = str(gold)
    return final_answer(text) or text


def log_unparsed(log: LogMetric | None, name: str, answers: Sequence[Any], golds: Sequence[Any]) -> None:
    """Log, as `rewards/<name>/unparsed`, the share of completions with a gold in which a reward found no answer (None)."""
    asked = [answer for answer, gold in zip(answers, golds, strict=True) if gold is not None]
    if log is not None and asked:
        log(f"rewards/{name}/unparsed", sum(answer is None for answer in asked) / len(asked))
