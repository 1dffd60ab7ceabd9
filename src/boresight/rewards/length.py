"""Shaping by the length and the repetitiveness of a completion, in tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.formula import accuracy_reward
from boresight.rewards.function import RewardFunc, with_options

if TYPE_CHECKING:
    from boresight.types import Conversation


def soft_overlong_punishment_reward(
    completion_ids: Sequence[Sequence[int]], *, max_completion_len: int, soft_punish_cache: int, **columns: Any
) -> list[float]:
    r"""0 up to $L - c$ tokens, falling to −1 at $L$, and −1 beyond.

    $((L - c) - |y|) / c$ in between, with $L$ = `max_completion_len` and $c$ = `soft_punish_cache`.

    Reference:
        Yu et al., DAPO, arXiv 2503.14476, eq. 13.
    """
    free = max_completion_len - soft_punish_cache
    return [_overlong(len(ids), free, max_completion_len) for ids in completion_ids]


def _overlong(length: int, free: int, limit: int) -> float:
    if length <= free:
        return 0.0
    return -1.0 if length > limit else (free - length) / (limit - free)


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> RewardFunc:
    """DAPO's soft overlong punishment (TRL's name and arguments).

    Args:
        max_completion_len: $L$, the length from which the punishment is full.
        soft_punish_cache: $c$, the tokens before it over which the punishment grows.

    Raises:
        ConfigError: not 0 ≤ c ≤ L.
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ConfigError(
            f"soft_punish_cache={soft_punish_cache} must lie between 0 and max_completion_len={max_completion_len}."
        )
    return with_options(
        soft_overlong_punishment_reward, max_completion_len=max_completion_len, soft_punish_cache=soft_punish_cache
    )


def repetition_penalty_reward(
    completion_ids: Sequence[Sequence[int]], *, ngram_size: int, max_penalty: float, **columns: Any
) -> list[float]:
    """`max_penalty` times the share of n-grams of token ids that were there before; 0 for less than one n-gram.

    Reference:
        Yeo et al., Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373, appendix C.2.
    """
    return [max_penalty * _repeated_share(ids, ngram_size) for ids in completion_ids]


def _repeated_share(ids: Sequence[int], ngram_size: int) -> float:
    ngrams = [tuple(ids[start : start + ngram_size]) for start in range(len(ids) - ngram_size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> RewardFunc:
    """A penalty for repeated n-grams (TRL's name and arguments).

    Raises:
        ConfigError: an empty n-gram, or a penalty that would be a reward.
    """
    if ngram_size < 1:
        raise ConfigError(f"ngram_size must be at least 1, and is {ngram_size}.")
    if max_penalty > 0:
        raise ConfigError(f"max_penalty must not be positive, and is {max_penalty}.")
    return with_options(repetition_penalty_reward, ngram_size=ngram_size, max_penalty=max_penalty)


def cosine_scaled_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_len: int,
    wrong: tuple[float, float],
    correct: tuple[float, float],
    accuracy: RewardFunc,
    **columns: Any,
) -> list[float | None]:
    """The value of a right or wrong answer: a half cosine from `correct[0]` or `wrong[0]` to `…[1]` at `max_len`."""
    marks = accuracy(completions=completions, solution=solution)
    return [
        None if mark is None else _half_cosine(min(len(ids) / max_len, 1.0), *(correct if mark else wrong))
        for mark, ids in zip(marks, completion_ids, strict=True)
    ]


def _half_cosine(progress: float, start: float, end: float) -> float:
    return end + 0.5 * (start - end) * (1.0 + math.cos(progress * math.pi))


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    accuracy: RewardFunc = accuracy_reward,
) -> RewardFunc:
    """Correctness scaled by length: the shorter a right answer the better, the longer a wrong one the less bad.

    Name and arguments are TRL's; `accuracy` is ours.

    Args:
        max_len: length in tokens at which the schedule ends.
        min_value_wrong: a wrong answer of no length.
        max_value_wrong: a wrong answer of `max_len` tokens or more.
        min_value_correct: a right answer of `max_len` tokens or more.
        max_value_correct: a right answer of no length.
        accuracy: what decides right (not 0) or wrong (0); with `exact_answer_reward` it serves answers that are words.

    Reference:
        Yeo et al., Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373, appendix C.1.
    """
    if max_len < 1:
        raise ConfigError(f"max_len must be at least 1, and is {max_len}.")
    return with_options(
        cosine_scaled_reward,
        max_len=max_len,
        wrong=(min_value_wrong, max_value_wrong),
        correct=(max_value_correct, min_value_correct),
        accuracy=accuracy,
    )
