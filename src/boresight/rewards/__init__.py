"""Completions to a table of rewards: TRL's callables, run with care, and the usual ones ready-made.

Nothing heavy is loaded until a name is used: a reward worker needs one function and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names

if TYPE_CHECKING:
    from boresight.rewards.check import GoldCheck, check_gold
    from boresight.rewards.choice import (
        choice_letter_reward,
        exact_answer_reward,
    )
    from boresight.rewards.extract import completion_text, tagged_answer
    from boresight.rewards.format import answer_format_reward, article_format_reward, think_format_reward
    from boresight.rewards.formula import accuracy_reward, reasoning_accuracy_reward
    from boresight.rewards.function import Failure, RewardFunc
    from boresight.rewards.grounding import (
        get_iou_reward,
        get_point_in_box_reward,
        iou_reward,
        point_in_box_reward,
    )
    from boresight.rewards.judge import get_judge_reward
    from boresight.rewards.length import (
        get_cosine_scaled_reward,
        get_repetition_penalty_reward,
        get_soft_overlong_punishment,
    )
    from boresight.rewards.number import get_numeric_answer_reward, numeric_answer_reward
    from boresight.rewards.options import GOLD_TEMPLATE
    from boresight.rewards.pool import RewardPool
    from boresight.rewards.score import Scorer
    from boresight.rewards.table import RewardTable
from boresight.rewards.function import Failure, RewardFunc

_HOMES = {
    "Failure": "function",
    "GOLD_TEMPLATE": "options",
    "GoldCheck": "check",
    "RewardFunc": "function",
    "RewardPool": "pool",
    "RewardTable": "table",
    "Scorer": "score",
    "accuracy_reward": "formula",
    "answer_format_reward": "format",
    "article_format_reward": "format",
    "check_gold": "check",
    "choice_letter_reward": "choice",
    "completion_text": "extract",
    "exact_answer_reward": "choice",
    "get_cosine_scaled_reward": "length",
    "get_iou_reward": "grounding",
    "get_judge_reward": "judge",
    "get_numeric_answer_reward": "number",
    "get_point_in_box_reward": "grounding",
    "get_repetition_penalty_reward": "length",
    "get_soft_overlong_punishment": "length",
    "iou_reward": "grounding",
    "numeric_answer_reward": "number",
    "point_in_box_reward": "grounding",
    "reasoning_accuracy_reward": "formula",
    "tagged_answer": "extract",
    "think_format_reward": "format",
}

__all__ = [
    "GOLD_TEMPLATE",
    "Failure",
    "GoldCheck",
    "RewardFunc",
    "RewardPool",
    "RewardTable",
    "Scorer",
    "accuracy_reward",
    "answer_format_reward",
    "article_format_reward",
    "check_gold",
    "choice_letter_reward",
    "completion_text",
    "exact_answer_reward",
    "get_cosine_scaled_reward",
    "get_iou_reward",
    "get_judge_reward",
    "get_numeric_answer_reward",
    "get_point_in_box_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "iou_reward",
    "numeric_answer_reward",
    "point_in_box_reward",
    "reasoning_accuracy_reward",
    "tagged_answer",
    "think_format_reward",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
