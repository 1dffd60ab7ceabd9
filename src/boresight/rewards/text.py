"""What a reward function sees of a completion. Nothing heavy: a reward worker loads this and little else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boresight.types import Conversation

RewardFunc = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """What a function returns for a completion on which it failed; the completion is then unscored, never given 0."""

    reason: str


def completion_text(completion: str | Conversation) -> str:
    """The text of a completion in either form, text parts joined."""
    if isinstance(completion, str):
        return completion
    content = completion[0]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")
