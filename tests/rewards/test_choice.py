from __future__ import annotations

import pytest

from boresight.errors import ConfigError
from boresight.rewards import (
    Scorer,
    choice_letter_reward,
    exact_answer_reward,
    get_numeric_answer_reward,
    numeric_answer_reward,
)
from boresight.rewards.choice import choice_letter
from boresight.rewards.number import stated_number


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
    ("text", "number"),
    [
        ("7", 7),
        ("-2e3", -2000),
        ("1,234.5", 1234.5),
        (".5", 0.5),
        ("-.5e-1", -0.05),
        ("3/4", 0.75),
        ("1 / 4", 0.25),
        ("25.0°", 25),
        ("the value is 12.", 12),
        ("x = 5 cm", 5),
        ("1,23", None),
        ("between 1 and 2", None),
        ("12/0", None),
        ("B2", None),
        ("none", None),
        ("", None),
    ],
)
def test_stated_number(text, number):
    assert stated_number(text) == number


def test_numeric_answer_reward():
    texts = ["<think>3</think><answer>2.5</answer>", "<answer>2.75</answer>", "2.5 m", "<answer>about</answer>", "2"]
    assert numeric_answer_reward(texts, [2.5, 2.5, "2.5", 2.5, "two"]) == [1, 0, 1, 0, None]
    assert get_numeric_answer_reward(0.25)(texts, [2.5, 2.5, 2.25, 2.5, None]) == [1, 1, 1, 0, None]
    assert get_numeric_answer_reward(0.2)(["2.75"], solution=[2.5]) == [0]
    with pytest.raises(ConfigError, match="tolerance must not be negative, and is -1"):
        get_numeric_answer_reward(-1)


def test_tolerance_is_kept_by_the_scorer(make_group):
    table = Scorer(["numeric_answer_reward", get_numeric_answer_reward(1.0)]).score([make_group(["3.5"], solution=4)])
    assert table.names == ("numeric_answer_reward", "numeric_answer_reward_2")
    assert table.values.tolist() == [[0, 1]]


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
