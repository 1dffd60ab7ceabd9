from __future__ import annotations

import pytest

from boresight.errors import ConfigError
from boresight.rewards import Scorer, get_numeric_answer_reward, numeric_answer_reward
from boresight.rewards.number import stated_number


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
    ("text", "number"),
    [
        ("2 + 3 = 5, so the answer is 5", 5),
        ("Answer: x = 7, not 8", 7),
        ("5 = 5", 5),
        (r"2+2 is \\boxed{4}", 4),
        (r"\\boxed{4}, that is \\boxed{5}", None),
        ("Answer: 3 or 4", None),
        ("12:30", None),
        ("2020-01-01", None),
        ("3-4", None),
        ("1e999", None),
        *[(text, None) for text in ("2π", r"\\sqrt{2}", "5√2", "sqrt(2)", "2x", "sin 30", r"\\frac{x}{2}", "2^3")],
    ],
)
def test_of_several_numbers_one_must_be_announced_and_a_part_of_a_formula_is_none(text, number):
    assert stated_number(text) == number
