"""Answers that are a word or a letter.

Formulas are for `accuracy_reward`: math-verify parses the word *blue* as nothing, or as a product of four letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boresight.rewards.extract import LogMetric, completion_text, final_answer, gold_answer, log_unparsed, tagged_answer
from boresight.rewards.notation import boxed, plain, without_markup

if TYPE_CHECKING:
    from boresight.types import Conversation

ALONE = re.compile(r"^[^\w\n]*([A-Za-z])[^\w\n]*$", re.MULTILINE)
"""A letter with a line of its own: ``B``, ``(b)``, ``B.``"""

BEFORE_ITS_TEXT = re.compile(
    r"^\W*([A-Za-z])(?:[.):](?=\s)|\s+-\s)|^\W*\(([A-Za-z])\)\s|^\W*([A-Z]),\s*(?!(?:or|and)\b)(?=[^\W\d_]{2})",
    re.MULTILINE,
)
"""``B. 130``, ``b) 130``, ``(B) 130``, ``B, because …``."""

IN_BRACKETS = re.compile(r"(?<![\w\\])[(\[{]\s*([A-Za-z])\s*[)\]}]")
"""``the angle is (B)``."""

ANNOUNCED = re.compile(
    r"""
    (?: (?i: \b(?:answer|option|choice|choose|pick|select)\b["'*]*        # the answer, "answer", option, I choose
        (?:\s+(?:is|was|would\s+be|should\s+be|must\s+be|option|choice|letter))* )
      | (?:答案|選項|选项|選擇|选择|選|选)\s*(?:應該|应该)?(?:是|為|为)? )
    \s*[:=]?\s*["'(\[{<]*
    (?: ([A-Z])(?![\w'])                                                  # a capital may be followed by words
      | ([a-z])(?=["')\]}>]*(?:[.,;:!?]|\s*$|\s+(?:because|since|as)\b)) )  # a small letter not: "a dog" is no letter
    (?!["')\]}>]*\s*(?:\bor\b|\band\b|[/,&或和])\s*\(?[A-Z](?![\w']))       # A or B is a hedge
    """,
    re.VERBOSE | re.MULTILINE,
)


def exact_answer_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the text inside the one ``<answer>…</answer>`` equals the solution, else 0; None where the solution is None.

    Case, white space, a full stop at the end, typographic signs, and marks around the whole (``$…$``, ``\\boxed{…}``, ``**…**``) do not
    matter. A solution may carry the tags itself.
    """
    answers = [tagged_answer(completion_text(completion)) for completion in completions]
    log_unparsed(log_metric, "exact_answer_reward", answers, solution)
    return [
        None if gold is None else float(answer is not None and plain(answer) == plain(gold_answer(gold)))
        for answer, gold in zip(answers, solution, strict=True)
    ]


def choice_letter(text: str) -> str | None:
    """The one letter that the text chooses, as a capital; None where it chooses none, or several. Boxes, where there are some, decide."""
    marked = boxed(text)
    if marked:
        letters = {_letter(each) for each in marked}
        return letters.pop() if len(letters) == 1 else None
    return _letter(text)


def _letter(text: str) -> str | None:
    text = without_markup(text).replace("$", "").strip()
    patterns = (ALONE, BEFORE_ITS_TEXT, IN_BRACKETS, ANNOUNCED)
    found = {
        letter.upper()
        for pattern in patterns
        for match in pattern.finditer(text)
        for letter in match.groups()
        if letter
    }
    return found.pop() if len(found) == 1 else None


def choice_letter_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 where the completion chooses the solution's letter, else 0; None where the solution has no letter.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags, in any case: ``B``, ``(b)``,
    ``B. 130``, ``\\boxed{B}``, ``Answer: B``, ``the answer is B``. Two letters are no choice.
    """
    golds = [None if gold is None else choice_letter(gold_answer(gold)) for gold in solution]
    answers = [choice_letter(final_answer(completion_text(completion))) for completion in completions]
    log_unparsed(log_metric, "choice_letter_reward", answers, golds)
    return [None if gold is None else float(answer == gold) for answer, gold in zip(answers, golds, strict=True)]
