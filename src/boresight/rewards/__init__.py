"""Completions to a table of rewards: TRL's callables, run with care, and the usual ones ready-made."""

from boresight.rewards.check import GOLD_TEMPLATE, GoldCheck, check_gold
from boresight.rewards.choice import (
    choice_letter_reward,
    exact_answer_reward,
    get_numeric_answer_reward,
    numeric_answer_reward,
)
from boresight.rewards.format import answer_format_reward, think_format_reward
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
from boresight.rewards.math import accuracy_reward
from boresight.rewards.pool import RewardPool
from boresight.rewards.reward import Failure, RewardFunc, RewardTable
from boresight.rewards.score import Scorer

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
    "check_gold",
    "choice_letter_reward",
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
    "think_format_reward",
]
