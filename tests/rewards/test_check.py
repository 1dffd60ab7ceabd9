from __future__ import annotations

import asyncio

import pytest
from math_verify import parse, verify

from boresight.errors import ConfigError
from boresight.rewards import Scorer, accuracy_reward, answer_format_reward, check_gold, exact_answer_reward


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
    assert check_gold(Scorer(exact_answer_reward), prompts(make_group, None)) == []


def test_a_template_without_a_place_is_refused(make_group) -> None:
    with pytest.raises(ConfigError, match="no place for the gold"):
        check_gold(Scorer(exact_answer_reward), prompts(make_group, "a"), "<answer></answer>")
