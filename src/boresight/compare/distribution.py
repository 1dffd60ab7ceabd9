"""What models answer, whatever the question: their commonest answers, their accuracy for each right answer, and how far one gets blind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from boresight.compare.accuracy import Accuracy, Mark, accuracy
from boresight.compare.answers import Answer, Question
from boresight.rewards.extract import final_answer, gold_answer
from boresight.rewards.notation import plain

MAX_ANSWER = 40
"""Characters of an answer that are shown and counted as one."""
MAX_GOLDS = 30
"""Above this number of different right answers, accuracy for each of them says little and is left out."""


def short(text: str) -> str:
    """An answer without case, spaces around it and reasoning, cut to `MAX_ANSWER` characters; ``(none)`` where there is none."""
    found = plain(final_answer(text)) or "(none)"
    return found if len(found) <= MAX_ANSWER else f"{found[: MAX_ANSWER - 1]}…"


def commonest(answers: Sequence[Answer], num: int = 5) -> list[tuple[str, int]]:
    """The commonest answers and how often they were given, most often first."""
    return Counter(short(answer.text) for answer in answers).most_common(num)


def golds_of(questions: Sequence[Question]) -> Counter[str]:
    """Right answer → the number of its questions, most often first. Empty where there are more than `MAX_GOLDS`, or one."""
    counts = Counter(_gold(question) for question in questions if question.gold is not None)
    return Counter(dict(counts.most_common())) if 1 < len(counts) <= MAX_GOLDS else Counter()


def accuracy_by_gold(questions: Sequence[Question], marks: Sequence[Mark]) -> dict[str, Accuracy]:
    """Right answer → the accuracy on its questions; empty as for `golds_of`."""
    own: defaultdict[str, list[Mark]] = defaultdict(list)
    for question, mark in zip(questions, marks, strict=True):
        if question.gold is not None:
            own[_gold(question)].append(mark)
    return {gold: accuracy(own[gold]) for gold in golds_of(questions)}


def blind_guesser(questions: Sequence[Question]) -> Accuracy | None:
    """How often a guesser is right that reads the question and sees no image.

    It knows one half of the questions with their right answers, and answers the other half: as the same question is answered most often
    there, else with that half's commonest right answer. Then the halves change places. None where fewer than two questions have a right
    answer, or no image.
    """
    asked = [question for question in questions if question.gold is not None and question.images]
    # A half is chosen by the key, a digest: neighbouring rows are often variants of one question.
    halves = [
        [question for place, question in enumerate(sorted(asked, key=lambda each: each.key)) if place % 2 == half]
        for half in (0, 1)
    ]
    if not all(halves):
        return None
    right = sum(_guessed(known, unknown) for known, unknown in (halves, halves[::-1]))
    return Accuracy(right, len(asked))


def _guessed(known: Sequence[Question], asked: Sequence[Question]) -> int:
    overall = Counter(_gold(question) for question in known)
    by_text: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in known:
        by_text[question.question][_gold(question)] += 1
    return sum(
        (by_text.get(question.question) or overall).most_common(1)[0][0] == _gold(question) for question in asked
    )


def _gold(question: Question) -> str:
    return short(gold_answer(question.gold))
