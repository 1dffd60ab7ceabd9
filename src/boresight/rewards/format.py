"""Rewards for the format of a completion, whatever its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boresight.rewards.extract import completion_text

if TYPE_CHECKING:
    from boresight.types import Conversation

ANSWER_FORMAT = re.compile(r"^<think>.*?</think>\s*<answer>.*?</answer>$", re.DOTALL)


def answer_format_reward(completions: Sequence[str | Conversation], **columns: Any) -> list[float]:
    """1 where the completion is ``<think>…</think>`` followed by ``<answer>…</answer>`` and nothing else, else 0.

    The pattern is the article's ``^<think>.*?</think>\\s*<answer>.*?</answer>$``; here the reasoning and the answer may
    run over several lines, which the article's own function refuses.
    """
    return [float(bool(ANSWER_FORMAT.match(completion_text(completion)))) for completion in completions]


def think_format_reward(completions: Sequence[str | Conversation], **columns: Any) -> list[float]:
    """1 where the completion starts with its only ``<think>`` and closes it, else 0 (TRL's `think_format_reward`)."""
    texts = map(completion_text, completions)
    return [float(text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text) for text in texts]
