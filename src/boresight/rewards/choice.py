"""Answers that are a word, a letter or a number.

Formulas are for `accuracy_reward`: math-verify parses the word *blue* as nothing, or as a product of four letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import LogMetric, completion_text, final_answer, log_unparsed, normalized, tagged_answer
from boresight.rewards.function import RewardFunc

if TYPE_CHECKING:
    from boresight.types import Conversation

LETTER = re.compile(
    r"""
      ^\W*([A-Z])\W*$                                      # alone: B, (B), **B**, B.
    | ^\W*([A-Z])[.):]\s                                   # before its text: B. 130, (B) 130
    | [(\[{]([A-Z])[)\]}]                                  # in brackets: the angle is (B), \boxed{B}
    | \b(?:answer|option|choice)(?:\s+is)?:?\s+([A-Z])\b   # announced: the answer is B
    """,
    re.VERBOSE | re.MULTILINE,
)
NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?"
)


def exact_answer_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the text inside the one ``<answer>…</answer>`` equals the solution, else 0; None where the solution is None.

    Case and the amount of white space do not matter. A solution may carry the tags itself.
    """
    answers = [tagged_answer(completion_text(completion)) for completion in completions]
    log_unparsed(log_metric, "exact_answer_reward", answers, solution)
    return [
        None
        if gold is None
        else float(answer is not None and normalized(answer) == normalized(final_answer(str(gold))))
        for answer, gold in zip(answers, solution, strict=True)
    ]


def choice_letter(text: str) -> str | None:
    """The one capital letter that the text chooses; None where it chooses none, or several."""
    letters = {letter for match in LETTER.findall(text) for letter in match if letter}
    return letters.pop() if len(letters) == 1 else None


def choice_letter_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the completion chooses the solution's letter, else 0; None where the solution has no letter.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags: ``B``, ``(B)``,
    ``B. 130``, ``\\boxed{B}``, ``the answer is B``. Two letters are no choice.
    """
    golds = [None if gold is None else choice_letter(final_answer(str(gold))) for gold in solution]
    answers = [choice_letter(final_answer(completion_text(completion))) for completion in completions]
    log_unparsed(log_metric, "choice_letter_reward", answers, golds)
    return [None if gold is None else float(answer == gold) for answer, gold in zip(answers, golds, strict=True)]


def stated_number(text: str) -> float | None:
    """The one number in the text (``1,234.5``, ``-2e3``, ``3/4``, ``25°``); None where there is none, or several."""
    found = [match.group() for match in NUMBER.finditer(text) if match.group()]
    if len(found) != 1:
        return None
    numerator, _, denominator = found[0].replace(",", "").partition("/")
    if denominator and float(denominator) == 0:
        return None
    return float(numerator) / float(denominator or 1)


def numeric_answer_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    *,
    tolerance: float = 1e-6,
    **columns: Any,
) -> list[float | None]:
    """1 where the answer's one number lies within `tolerance` of the solution's, else 0; None where the solution has no number.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags. Units are not
    compared.

    Args:
        completions: strings or conversations.
        solution: a number, or a text with one number.
        tolerance: the largest |answer − solution| that counts, in the solution's unit;
            `get_numeric_answer_reward` sets it.
    """
    golds = [None if gold is None else stated_number(final_answer(str(gold))) for gold in solution]
    answers = [stated_number(final_answer(completion_text(completion))) for completion in completions]
    log_unparsed(log_metric, "numeric_answer_reward", answers, golds)
    return [
        None if gold is None else float(answer is not None and abs(answer - gold) <= tolerance)
        for answer, gold in zip(answers, golds, strict=True)
    ]


def get_numeric_answer_reward(tolerance: float) -> RewardFunc:
    """`numeric_answer_reward` with another tolerance.

    Raises:
        ConfigError: a negative tolerance.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance must not be negative, and is {tolerance}.")
    return partial(numeric_answer_reward, tolerance=tolerance)
