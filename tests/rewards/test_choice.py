from __future__ import annotations

import pytest

from boresight.rewards import (
    choice_letter_reward,
    exact_answer_reward,
    numeric_answer_reward,
)
from boresight.rewards.choice import choice_letter


@pytest.mark.parametrize(
    ("text", "solution", "reward"),
    [
        ("<answer>blue</answer>", "blue", 1),
        ("<think>red?</think><answer> Light\n  BLUE </answer>", "light blue", 1),
        ("<answer>7</answer>", 7, 1),
        ("<answer>b</answer>", "<think>why</think><answer>B</answer>", 1),
        ("<answer>lueb</answer>", "blue", 0),
        ("<answer>blue</answer><answer>red</answer>", "blue", 0),
        ("blue", "blue", 0),
        ("<answer>blue", "blue", 0),
        ("<answer></answer>", "blue", 0),
        ("<answer>blue</answer>", None, None),
    ],
)
def test_exact_answer(text, solution, reward):
    assert exact_answer_reward([text], [solution]) == [reward]
    assert exact_answer_reward([[{"role": "assistant", "content": text}]], [solution]) == [reward]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[(text, "B") for text in ("B", " (B) ", "**B**", "B.", "B. 130", "B) 130", "(B) 130", r"\boxed{B}", "[B]")],
        *[(text, "D") for text in ("The answer is D", "answer: D", "so I take option D, as said", "it says\nD")],
        ("A dog", None),
        ("I see", None),
        ("b", "B"),
        ("The answer is A or B", None),
        (r"\\boxed{A} or \\boxed{B}", None),
        ("(A) or (B)", None),
        ("B. 130\nC. 120", None),
        ("The answer is B, as (B) says", "B"),
        ("", None),
    ],
)
def test_choice_letter(text, letter):
    assert choice_letter(text) == letter


def test_choice_letter_reward():
    texts = [
        "<think>(A)?</think><answer>B</answer>",
        "<think>(A)?</think> It is (B).",
        "<answer>C</answer>",
        "<answer></answer>B",
    ]
    assert choice_letter_reward(texts, ["B", "B. 130", "B", "B"]) == [1, 1, 0, 0]
    assert choice_letter_reward(["B", "B", "B"], [None, "blue", "<answer>B</answer>"]) == [None, None, 1]


@pytest.mark.parametrize(
    ("reward", "texts", "golds"),
    [
        (
            exact_answer_reward,
            ["<answer>red</answer>", "red", "<answer>blue</answer>", "no tags"],
            ["red"] * 3 + [None],
        ),
        (choice_letter_reward, ["(A)", "A or B", "B"], ["A", "B", "A"]),
        (numeric_answer_reward, ["3", "between 1 and 2", "4"], [3, 1, 3]),
    ],
)
def test_the_share_without_an_answer_is_logged(reward, texts, golds):
    """One of three has no answer to be read; a row without a gold is not asked."""
    logged = {}
    reward(texts, golds, log_metric=logged.__setitem__)
    assert logged == {f"rewards/{reward.__name__}/unparsed": pytest.approx(1 / 3)}
