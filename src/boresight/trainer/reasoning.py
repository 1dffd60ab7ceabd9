"""What a chat template does with ``<think>``: some open it at the end of the prompt, so that a completion begins inside the reasoning."""

from __future__ import annotations

from typing import Any, Literal

from boresight.types import Prompt

TAIL_TOKENS = 24
"""Tokens at the end of a prompt that are read: where ``<think>`` is not one token it has several."""

ThinkState = Literal["opened", "closed"]


def think_state(prompt: Prompt, tokenizer: Any) -> ThinkState | None:
    """Whether the prompt ends with ``<think>`` (opened), or with the end of a reasoning that the template filled in itself (closed)."""
    text = tokenizer.decode(prompt.unexpanded_ids[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    if text.endswith("<think>"):
        return "opened"
    return "closed" if text.endswith("</think>") else None


def think_note(state: ThinkState | None) -> str | None:
    """What a user has to know about it before training."""
    match state:
        case "opened":
            return (
                "the chat template opens <think> itself: completions begin inside the reasoning, and the format rewards expect no <think> "
                "of their own."
            )
        case "closed":
            return (
                "the chat template closes <think> itself: completions hold no reasoning, so answer_format_reward and think_format_reward "
                "can be met only by a second one. Turn it on with chat_template_kwargs (often enable_thinking), or drop these rewards."
            )
        case None:
            return None
