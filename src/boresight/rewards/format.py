"""Rewards for the format of a completion, whatever its answer.

A chat template may end the prompt with ``<think>``, so that the completion begins inside the reasoning. Trainers pass the rewards what the
prompt of each completion ends with (`think_opened`): a completion must then not open ``<think>`` again. Where it is not passed, as in a
direct call, a completion may do either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boresight.rewards.extract import completion_text

if TYPE_CHECKING:
    from boresight.types import Conversation

ARTICLE_FORMAT = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>$")
"""The article's regular expression. Its dot matches no line break, and each part may be empty or hold further tags."""

ANSWER_FORMAT = re.compile(r"^<think>(.*?)</think>\s*<answer>(.*?)</answer>$", re.DOTALL)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def answer_format_reward(
    completions: Sequence[str | Conversation], think_opened: Sequence[bool] | None = None, **columns: Any
) -> list[float]:
    """1 where the completion is ``<think>…</think>`` followed by ``<answer>…</answer>`` and nothing else, else 0.

    Each tag stands there once, and there is text in both parts, which may run over several lines.

    Args:
        completions: strings or conversations.
        think_opened: whether the prompt already ends with ``<think>``, which the completion must then leave out; None: either may be.
    """
    return [float(any(map(_has_answer_format, whole))) for whole in _wholes(completions, think_opened)]


def think_format_reward(
    completions: Sequence[str | Conversation], think_opened: Sequence[bool] | None = None, **columns: Any
) -> list[float]:
    """1 where the completion starts with its only ``<think>`` and closes it, else 0 (TRL's `think_format_reward`).

    Args:
        completions: strings or conversations.
        think_opened: as for `answer_format_reward`.
    """
    return [float(any(map(_has_think_format, whole))) for whole in _wholes(completions, think_opened)]


def article_format_reward(completions: Sequence[str | Conversation], **columns: Any) -> list[float]:
    """1 where the article's ``^<think>.*?</think>\\s*<answer>.*?</answer>$`` matches, else 0.

    It also matches empty parts and repeated tags, and no reasoning of several lines: `answer_format_reward` is stricter and wider.
    """
    return [float(bool(ARTICLE_FORMAT.match(completion_text(completion)))) for completion in completions]


def _wholes(
    completions: Sequence[str | Conversation], think_opened: Sequence[bool] | None
) -> list[tuple[str] | tuple[str, str]]:
    """Each completion's readings: as it is, behind a ``<think>`` of the prompt, or both."""
    texts = list(map(completion_text, completions))
    if think_opened is None:
        return [(text, f"<think>{text}") for text in texts]
    return [(f"<think>{text}" if opened else text,) for text, opened in zip(texts, think_opened, strict=True)]


def _has_answer_format(text: str) -> bool:
    found = ANSWER_FORMAT.match(text)
    return bool(found) and all(text.count(tag) == 1 for tag in TAGS) and all(part.strip() for part in found.groups())


def _has_think_format(text: str) -> bool:
    return text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text
