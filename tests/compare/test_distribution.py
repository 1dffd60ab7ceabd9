"""What is answered most often, accuracy for each right answer, and the blind guesser: numbers worked out by hand."""

from __future__ import annotations

from boresight.compare.accuracy import Accuracy
from boresight.compare.answers import Answer, Question
from boresight.compare.distribution import (
    MAX_GOLDS,
    accuracy_by_gold,
    blind_guesser,
    commonest,
    golds_of,
    short,
)


def question(place: int, gold: str | None, text: str = "what?", *, image: bool = True) -> Question:
    return Question(f"{place:04}", place, text, gold, "", ("a.png",) if image else (), {})


def answered(*texts: str) -> list[Answer]:
    return [Answer(text, (), truncated=False) for text in texts]


def test_answers_are_counted_without_reasoning_tags_and_case() -> None:
    given = answered("<think>x</think><answer>Red</answer>", "red ", "RED", "blue", "<answer></answer>")
    assert commonest(given, 2) == [("red", 3), ("blue", 1)]
    assert commonest(given)[-1] == ("(none)", 1)
    assert short("a" * 60) == "a" * 39 + "…"


def test_accuracy_for_each_right_answer() -> None:
    questions = [question(place, gold) for place, gold in enumerate(["3", "7", "3", "3", "7"])]
    assert list(golds_of(questions).items()) == [("3", 3), ("7", 2)]
    marks = [True, False, False, True, None]
    assert accuracy_by_gold(questions, marks) == {"3": Accuracy(2, 3), "7": Accuracy(0, 1, 1)}


def test_many_different_right_answers_or_a_single_one_are_not_told_apart() -> None:
    assert not golds_of([question(place, str(place)) for place in range(MAX_GOLDS + 1)])
    assert golds_of([question(place, str(place)) for place in range(MAX_GOLDS)])
    assert not golds_of([question(0, "3"), question(1, "3")])


def test_the_blind_guesser_learns_from_the_other_half_alone() -> None:
    # Halves by key: places 0, 2, 4 and 1, 3, 5. "shape?" is a circle in one half and a square in the other.
    golds = [
        ("red", "colour?"),
        ("red", "colour?"),
        ("red", "colour?"),
        ("blue", "colour?"),
        ("circle", "shape?"),
        ("square", "shape?"),
    ]
    questions = [question(place, gold, text) for place, (gold, text) in enumerate(golds)]
    # Knowing {red, red, circle}: answers red (right), red (wrong: blue), circle (wrong). Knowing {red, blue, square}: red comes first, so
    # red, red (both right), square (wrong).
    assert blind_guesser(questions) == Accuracy(3, 6)


def test_the_blind_guesser_gains_nothing_from_questions_that_are_all_different() -> None:
    questions = [question(place, str(place), f"{place}?") for place in range(8)]
    assert blind_guesser(questions) == Accuracy(0, 8)


def test_without_images_or_right_answers_nobody_is_blind() -> None:
    assert blind_guesser([question(place, "3", image=False) for place in range(4)]) is None
    assert blind_guesser([question(place, None) for place in range(4)]) is None
    assert blind_guesser([question(0, "3")]) is None
