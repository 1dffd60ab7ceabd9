"""Finding the answer inside a completion."""

from __future__ import annotations

import re

ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


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
