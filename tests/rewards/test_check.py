from __future__ import annotations

import asyncio
import re

import pytest
from math_verify import parse, verify

from boresight.errors import ConfigError
from boresight.rewards import (
    Scorer,
    accuracy_reward,
    answer_format_reward,
    check_gold,
    exact_answer_reward,
    numeric_answer_reward,
)
from boresight.rewards.check import parts_of, rewritten


def article_reward(completions, **kwargs):
    """As the article's: a gold that does not parse scores 1."""
    rewards = []
    for completion, solution in zip(completions, kwargs["solution"], strict=True):
        gold = parse(solution)
        rewards.append(float(verify(gold, parse(completion))) if gold else 1.0)
    return rewards


def prompts(make_group, *golds):
    return [make_group([], index=index, solution=gold).prompt for index, gold in enumerate(golds)]


def test_sound_rewards_give_full_marks(make_group) -> None:
    words, formulas = prompts(make_group, "blue", "a circle"), prompts(make_group, "$x^2$", "$\\frac{1}{2}$")
    assert [str(check) for check in check_gold(Scorer(exact_answer_reward), words)] == [
        "exact_answer_reward gives full marks to all 2 gold answers"
    ]
    assert all(check.is_sound for check in check_gold(Scorer([accuracy_reward, article_reward]), formulas))


def test_a_gold_without_full_marks_is_named(make_group) -> None:
    """In tags the reward looks into, a gold with tags of its own; in another template nothing is found."""
    (check,) = check_gold(Scorer(exact_answer_reward), prompts(make_group, "blue", "red"), "the answer is {solution}")
    assert not check.is_sound
    assert str(check) == (
        "exact_answer_reward does not give full marks to 2 of 2 gold answers: row 0 ('blue': 0), row 1 ('red': 0)"
    )


def test_a_gold_that_does_not_parse_is_named_although_it_scores_1(make_group) -> None:
    (check,) = check_gold(Scorer(article_reward), prompts(make_group, "$x^2$", "blue", "$3$"))
    assert (check.refused, check.blind) == ([], [(1, "blue")])
    assert "gives nonsense full marks too in 1 rows, whose gold it does not read: row 1 ('blue')" in str(check)


def test_a_function_that_fails_is_reported_and_stops_nothing(make_group) -> None:
    def broken(completions, solution):
        raise OSError("disk")

    (check,) = check_gold(Scorer(broken), prompts(make_group, "a", "b"))
    assert (check.failed, check.is_sound) == (2, False)


def test_others_are_not_called(make_group) -> None:
    called = []

    def stateful(completions, **columns):
        called.append(1)
        return [0.0] * len(completions)

    async def judge(completions, solution):
        called.append(1)
        await asyncio.sleep(0)
        return [0.0] * len(completions)

    assert check_gold(Scorer([stateful, judge, answer_format_reward]), prompts(make_group, "a")) == []
    assert called == []


def test_rows_without_a_gold_are_left_out(make_group) -> None:
    (check,) = check_gold(Scorer(exact_answer_reward), prompts(make_group, "blue", None))
    assert check.num_rows == 1
    (check,) = check_gold(Scorer(exact_answer_reward), prompts(make_group, None))
    assert str(check) == "exact_answer_reward applies to none of the rows: they have no solution"
    assert not check.is_sound


def test_a_reward_that_applies_to_none_or_to_some_says_so(make_group) -> None:
    (check,) = check_gold(Scorer(numeric_answer_reward), prompts(make_group, "blue", "red"))
    assert not check.is_sound and "applies to none of the 2 gold answers (row 0 ('blue'), row 1 ('red'))" in str(check)
    (check,) = check_gold(Scorer(numeric_answer_reward), prompts(make_group, "blue", "3"))
    assert check.is_sound and str(check) == (
        "numeric_answer_reward gives full marks to all 1 gold answers; it does not apply to 1 of 2 rows: row 0 ('blue')"
    )


def first_number(completions, solution):
    """Reads gold and answer by one parser that stops at the first number, and loses the minus."""
    read = [re.search(r"\d+", text.partition("<answer>")[2]) for text in completions]
    return [float(bool(one) and one[0] == re.search(r"\d+", gold)[0]) for one, gold in zip(read, solution, strict=True)]


def test_a_misreading_that_gold_and_answer_share_is_found(make_group) -> None:
    """Each gold gets full marks, and nonsense none: only its parts give the parser away."""
    (check,) = check_gold(Scorer(first_number), prompts(make_group, r"5\sqrt{2}", "-3", "7"))
    assert (check.refused, check.blind) == ([], [])
    assert check.partial == [(0, r"5\sqrt{2}", "5"), (1, "-3", "3")] and not check.is_sound
    assert (
        r"reads only a part of 2 gold answers: row 0 ('5\\sqrt{2}': '5' is enough), row 1 ('-3': '3' is enough)"
        in str(check)
    )


def test_a_gold_that_loses_its_marks_written_otherwise_is_named(make_group) -> None:
    (check,) = check_gold(Scorer(article_reward), prompts(make_group, r"5 \sqrt { 2 }"))
    assert (0, r"$5 \sqrt { 2 }$") in check.rewritten and not check.is_sound

    def strict(completions, solution):
        return [float(f">{gold}<" in text) for text, gold in zip(completions, solution, strict=True)]

    (check,) = check_gold(Scorer(strict), prompts(make_group, "blue", "-5"))
    assert {text for _, text in check.rewritten} == {"BLUE", "$-5$", r"\boxed{-5}", "−5"}
    assert check.is_sound, "a function of one's own may be as strict as it wants"


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        ("−5", {"$−5$", r"\boxed{−5}", "-5"}),
        ("B", {"b", r"\boxed{B}"}),
        ("$x^2$", {r"\boxed{x^2}"}),
        ("light blue", {"LIGHT BLUE"}),
        ("10 apples", set()),
        ("The answer is $5$", set()),
    ],
)
def test_other_ways_of_writing(gold, written) -> None:
    assert set(rewritten(gold)) == written


@pytest.mark.parametrize(
    ("gold", "parts"),
    [
        ("5 cm", []),
        ("1,234.5", []),
        ("3/4", []),
        ("x = 5", []),
        ("−5", ["5"]),
        (r"$-5\sqrt{2}$", [r"5\sqrt{2}", "5", "2"]),
        ("blue", []),
        ("B. 130", []),
    ],
)
def test_parts(gold, parts) -> None:
    assert list(parts_of(gold)) == parts


def test_a_template_without_a_place_is_refused(make_group) -> None:
    with pytest.raises(ConfigError, match="no place for the gold"):
        check_gold(Scorer(exact_answer_reward), prompts(make_group, "a"), "<answer></answer>")
