from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boresight.errors import ConfigError
from boresight.rewards import (
    Scorer,
    exact_answer_reward,
    get_cosine_scaled_reward,
    get_iou_reward,
    get_numeric_answer_reward,
    get_point_in_box_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
)


@pytest.mark.parametrize(
    ("length", "punishment"),
    [(0, 0), (79, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (101, -1), (500, -1)],
)
def test_soft_overlong(length, punishment):
    reward = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert reward(completion_ids=[[3] * length], completions=["ignored"]) == [pytest.approx(punishment)]


def test_soft_overlong_without_cache_is_a_step():
    assert get_soft_overlong_punishment(5, 0)([[1] * 5, [1] * 6]) == [0, -1]


@pytest.mark.parametrize(
    ("ids", "penalty"),
    [([], 0), ([1], 0), ([1, 2], 0), ([1, 2, 3, 4], 0), ([5] * 5, -1.5), ([1, 2, 1, 2], -2 / 3)],
)
def test_repetition(ids, penalty):
    assert get_repetition_penalty_reward(ngram_size=2, max_penalty=-2.0)([ids]) == [pytest.approx(penalty)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4), st.integers(1, 4), st.integers(0, 8))
def test_equal_trl(ids, ngram_size, cache):
    from trl.rewards import get_repetition_penalty_reward as trl_repetition
    from trl.rewards import get_soft_overlong_punishment as trl_overlong

    assert get_repetition_penalty_reward(ngram_size, -0.7)(ids) == pytest.approx(trl_repetition(ngram_size, -0.7)(ids))
    assert get_soft_overlong_punishment(8, cache)(ids) == pytest.approx(trl_overlong(8, cache)(ids))


def test_cosine_scaled():
    right, wrong = "<answer>red</answer>", "<answer>blue</answer>"
    reward = get_cosine_scaled_reward(
        100,
        min_value_wrong=-3.0,
        max_value_wrong=-1.0,
        min_value_correct=2.0,
        max_value_correct=6.0,
        accuracy=exact_answer_reward,
    )
    texts = [right, right, right, right, wrong, wrong, wrong, right]
    lengths = [0, 50, 100, 300, 0, 50, 300, 50]
    solution = ["red"] * 7 + [None]
    scored = reward(completions=texts, solution=solution, completion_ids=[[0] * length for length in lengths])
    assert scored == [*map(pytest.approx, [6, 4, 2, 2, -3, -2, -1]), None]


def test_cosine_scaled_equals_trl():
    from trl.rewards import get_cosine_scaled_reward as trl_cosine

    arguments = {
        "completions": [[{"role": "assistant", "content": text}] for text in (r"$\boxed{4}$", "$5$", "$4$", "$4$")],
        "solution": ["$4$", "$4$", "$4$", "blue"],
        "completion_ids": [[1] * 3, [1] * 4, [1] * 20, [1]],
    }
    ours, theirs = get_cosine_scaled_reward(10)(**arguments), trl_cosine(10)(**arguments)
    assert ours == [*map(pytest.approx, theirs[:3]), None] and theirs[3] is None


def test_names_are_trls_and_survive_pickling(make_group):
    funcs = [get_soft_overlong_punishment(4, 2), get_repetition_penalty_reward(1)]
    scorer = Scorer(pickle.loads(pickle.dumps(funcs)))
    assert scorer.names == ("soft_overlong_punishment_reward", "repetition_penalty_reward")
    assert scorer.score([make_group(["a b c"])]).values.tolist() == [[-0.5, 0.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: get_soft_overlong_punishment(10, 11),
            "soft_punish_cache=11 must lie between 0 and max_completion_len=10",
        ),
        (lambda: get_repetition_penalty_reward(0), "ngram_size must be at least 1"),
        (lambda: get_repetition_penalty_reward(2, 0.5), "max_penalty must not be positive"),
        (lambda: get_cosine_scaled_reward(0), "max_len must be at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_factories_make_functions_with_a_name_that_survive_pickling():
    made = {
        "cosine_scaled_reward": get_cosine_scaled_reward(max_len=100),
        "repetition_penalty_reward": get_repetition_penalty_reward(),
        "soft_overlong_punishment_reward": get_soft_overlong_punishment(100, 20),
        "numeric_answer_reward": get_numeric_answer_reward(0.5),
        "iou_reward": get_iou_reward("unit"),
        "point_in_box_reward": get_point_in_box_reward("thousand"),
    }
    for name, func in made.items():
        again = pickle.loads(pickle.dumps(func))
        assert func.__name__ == again.__name__ == name
        assert again.keywords == func.keywords
    assert Scorer(list(made.values())).names == tuple(made)
