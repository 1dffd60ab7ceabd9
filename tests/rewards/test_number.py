from __future__ import annotations

from fractions import Fraction

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
        ("1,23", 1.23),
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
    assert numeric_answer_reward(texts, [2.5, 2.5, "2.5", 2.5, "many"]) == [1, 0, 1, 0, None]
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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3,5", 3.5),
        ("-0,5", -0.5),
        ("0,125", 0.125),  # no group of thousands begins with 0
        ("1,234", 1234),
        ("1.234", 1.234),
        ("1.234.567", 1234567),
        ("1.234,5", 1234.5),
        ("1.234.567,89", 1234567.89),
        ("1.234,567", 1234.567),
        ("1 234,5", 1234.5),
        ("1'234,5", 1234.5),
        ("1,234.5", 1234.5),
        ("1,2345", 1.2345),
        ("1234,567", 1234.567),
        (r"$3{,}5$", 3.5),
        (r"\boxed{12,5}", 12.5),
        ("12,50 €", 12.5),
        ("the answer is 3,5 cm, not 4", 3.5),
        ("(3,5)", None),
        ("[3,5]", None),
        (r"\{3,5\}", None),
        ("3,5,7", None),
        ("3, 5", None),
        ("3,5 or 4", None),
    ],
)
def test_a_decimal_comma(text, number):
    assert stated_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("three", 3),
        ("Twenty-one apples.", 21),
        ("The answer is forty two", 42),
        ("one hundred and five", 105),
        ("twelve hundred", 1200),
        ("one million two hundred thousand", 1_200_000),
        ("two dozen", 24),
        ("minus three and a half", -3.5),
        ("one and two thirds", Fraction(5, 3)),
        ("three quarters", 0.75),
        ("half", 0.5),
        ("three point one four", 3.14),
        ("five percent", 5),
        (r"\boxed{\text{seven}}", 7),
        ("There is one cup.", 1),
        ("one", 1),
        ("**One** cat", 1),
        ("no one", None),
        ("the red one", None),
        ("it is one of the shapes", None),
        ("three or four", None),
        ("Answer: three or four", None),
        ("the red one has three corners", None),
        ("three dogs and one cat", None),
        ("two three", None),
        ("nineteen eighty", None),
        ("half past two", None),
        ("the third", None),
        ("twenty-first", None),
        ("twenty-third", None),
        ("one hundred first", None),
        ("three and one third", Fraction(10, 3)),
        ("two hundreds", None),
        ("drei", None),
        ("three of the 5", 5),  # where digits stand, they count
    ],
)
def test_number_words(text, number):
    found = stated_number(text)
    assert found is None if number is None else found == pytest.approx(float(number))


def test_words_that_are_not_read_are_counted():
    logged: dict[str, float] = {}
    completions = ["<answer>drei</answer>", "<answer>three</answer>", "<answer>3,0</answer>", "<answer>4</answer>"]
    marks = numeric_answer_reward(
        completions, ["three"] * 4, log_metric=lambda name, value: logged.update({name: value})
    )
    assert marks == [0, 1, 1, 0]
    assert logged == {"rewards/numeric_answer_reward/unparsed": 0.25}
