from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

from boresight.errors import ConfigError, RewardError
from boresight.rewards import Scorer
from boresight.rewards.function import BUILT_IN
from boresight.types import EncodedImage

CONVERSATION = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour?"}]}]


def test_every_keyword_has_one_entry_per_completion(make_group):
    seen: dict[str, Any] = {}

    def f(**inputs):
        seen.update(inputs)
        return [0.0] * len(inputs["completions"])

    groups = [
        make_group(["red it is", "blue"], index=3, solution="red", level=2),
        make_group(["a b", "c", "d"], index=9, solution="d"),
    ]
    Scorer(f).score(groups, trainer_state="state")
    assert seen["prompts"] == ["what colour?"] * 5
    assert seen["completions"] == ["red it is", "blue", "a b", "c", "d"]
    assert seen["completion_ids"] == [[0, 1, 2], [0], [0, 1], [0], [0]]
    assert seen["solution"] == ["red", "red", "d", "d", "d"]
    assert seen["level"] == [2, 2, None, None, None]
    assert seen["trainer_state"] == "state"
    assert "images" not in seen and "image_sizes" not in seen


def test_completions_take_the_form_of_their_prompt(make_group):
    seen: list[Any] = []

    def f(prompts, completions):
        seen.extend(zip(prompts, completions, strict=True))
        return [1] * len(completions)

    Scorer(f).score([make_group(["red"], prompt=CONVERSATION), make_group(["blue"])])
    assert seen == [(CONVERSATION, [{"role": "assistant", "content": "red"}]), ("what colour?", "blue")]


def test_article_functions_run_as_printed(make_group):
    from math_verify import LatexExtractionConfig, parse, verify

    def format_reward(completions, **kwargs):
        pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
        matches = [re.match(pattern, content) for content in completions]
        return [1.0 if match else 0.0 for match in matches]

    def accuracy_reward(completions, **kwargs):
        solutions = kwargs["solution"]
        contents = [completion[0]["content"] for completion in completions]
        rewards = []
        for content, solution in zip(contents, solutions, strict=False):
            gold = parse(solution, extraction_mode="first_match", extraction_config=[LatexExtractionConfig()])
            answer = parse(content, extraction_mode="first_match", extraction_config=[LatexExtractionConfig()])
            if len(gold) != 0:
                try:
                    rewards.append(float(verify(answer, gold)))
                except Exception:
                    rewards.append(0.0)
            else:
                rewards.append(1.0)
        return rewards

    texts = ["<think>a</think> <answer>$4$</answer>", "$3$", "<answer>$4$</answer>"]
    strings = Scorer(format_reward).score([make_group(texts, solution="$4$")])
    talks = Scorer(accuracy_reward).score([make_group(texts, prompt=CONVERSATION, solution="$4$")])
    assert strings.names == ("format_reward",) and strings.values[:, 0].tolist() == [1, 0, 0]
    assert talks.names == ("accuracy_reward",) and talks.values[:, 0].tolist() == [1, 0, 1]


def test_table_of_several_functions(make_group):
    def first(completions):
        return [1.0, None, 0.5, math.nan]

    def second(completions):
        return [2, 3, None, None]

    table = Scorer([first, second], [0.5, 10.0]).score([make_group(["a", "b", "c", "d"])])
    assert table.names == ("first", "second")
    torch.testing.assert_close(
        table.values, torch.tensor([[1, 2], [math.nan, 3], [0.5, math.nan], [math.nan, math.nan]]), equal_nan=True
    )
    assert table.scored.tolist() == [True, True, True, False]
    torch.testing.assert_close(table.total, torch.tensor([20.5, 30.0, 0.25, math.nan]), equal_nan=True)
    assert not table.failed.any()


@pytest.mark.parametrize(
    "returned", [np.array([0.25, 2.0]), torch.tensor([0.25, 2.0]), (0.25, 2), [np.float32(0.25), torch.tensor(2)]]
)
def test_numbers_of_any_make_are_taken(make_group, returned):
    table = Scorer(lambda completions: returned).score([make_group(["a", "b"])])
    assert table.values[:, 0].tolist() == [0.25, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "'bad' returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "'bad' returned 3 values for 2 completions"),
        (0.5, r"'bad' returned 0.5 \(float\)"),
        (None, r"'bad' returned None \(NoneType\)"),
        ({"a": 1}, r"'bad' returned {'a': 1} \(dict\)"),
        (["a", 1.0], r"'bad' returned 'a' for completion 0 \(row 7\)"),
        ([0.0, [1.0]], r"'bad' returned \[1.0\] for completion 1 \(row 7\)"),
        ([0.0, math.inf], r"'bad' returned inf for completion 1 \(row 7\)"),
        ([1e39, 0.0], r"'bad' returned 1e\+39 for completion 0 \(row 7\)"),
        ([-math.inf, 0.0], r"'bad' returned -inf for completion 0 \(row 7\)"),
        (np.ones((2, 1)), r"'bad' returned \[1.0\] for completion 0 \(row 7\)"),
    ],
)
def test_broken_contract_names_function_and_what_it_returned(make_group, returned, message):
    def bad(completions):
        return returned

    with pytest.raises(RewardError, match=message):
        Scorer(bad).score([make_group(["a", "b"], index=7)])


def test_failure_leaves_the_completions_unscored(make_group, caplog):
    def good(completions):
        return [3.0, 4.0]

    def raises(completions):
        raise KeyError("no such thing")

    with caplog.at_level(logging.WARNING):
        table = Scorer([good, raises], max_failed_rate=1.0).score([make_group(["a", "b"])])
    assert table.failed.tolist() == [True, True]
    assert table.values[:, 0].tolist() == [3.0, 4.0]
    assert table.values[:, 1].isnan().all() and table.total.isnan().all() and not table.scored.any()
    assert (
        "'raises' failed; its 2 completions stay unscored (2 of the last 2 failed): KeyError: 'no such thing'"
        in caplog.text
    )


def test_function_that_fails_at_once_stops_the_run(make_group):
    def raises(completions):
        raise OSError("judge is down")

    with pytest.raises(
        RewardError, match=r"'raises' failed on 2 of its last 2 .*max_failed_rate=0.5.*OSError: judge is down"
    ) as caught:
        Scorer(raises).score([make_group(["a", "b"])])
    assert isinstance(caught.value.__cause__, OSError)


def test_failure_rate_is_over_the_last_calls(make_group):
    outcomes = iter([True, True, False, False, False, False])

    def sometimes(completions):
        if not next(outcomes):
            raise OSError("busy")
        return [0.0]

    scorer = Scorer(sometimes, max_failed_rate=0.6, failed_window=4)
    failed = [scorer.score([make_group(["a"])]).failed.item() for _ in range(4)]
    assert failed == [False, False, True, True]
    with pytest.raises(RewardError, match="3 of its last 4"):
        scorer.score([make_group(["a"])])


def test_async_functions_wait_side_by_side(make_group):
    barrier = threading.Barrier(2, timeout=10)
    met: list[asyncio.Event] = []

    async def waits(completions):
        event = asyncio.Event()
        met.append(event)
        barrier.wait()
        await asyncio.wait_for(event.wait(), 10)
        return [1.0]

    async def frees(completions):
        while not met:
            await asyncio.sleep(0)
        met[0].set()
        return [2.0]

    def sync(completions):
        barrier.wait()
        assert threading.current_thread() is threading.main_thread()
        return [3.0]

    table = Scorer([sync, waits, frees]).score([make_group(["a"])])
    assert table.values.tolist() == [[3.0, 1.0, 2.0]]


def test_async_works_inside_a_running_loop_and_keeps_its_loop(make_group):
    loops = []

    class Judge:
        async def __call__(self, completions, scale):
            loops.append(asyncio.get_running_loop())
            return [scale]

    scorer = Scorer(functools.partial(Judge(), scale=5.0))

    async def notebook():
        return scorer.score([make_group(["a"])])

    assert asyncio.run(notebook()).values.item() == 5.0
    assert scorer.score([make_group(["a"])]).values.item() == 5.0
    assert scorer.names == ("Judge",) and loops[0] is loops[1]


def test_async_failure_spares_its_neighbour(make_group):
    async def raises(completions):
        raise OSError("busy")

    async def works(completions):
        await asyncio.sleep(0.01)
        return [1.0]

    table = Scorer([raises, works], max_failed_rate=1).score([make_group(["a"])])
    assert table.failed.item() and table.values[0, 1] == 1.0


def test_leaving_is_a_failure_of_the_reward(make_group, caplog):
    def leaves_at_once(completions):
        sys.exit("enough")

    table = Scorer([leaves_at_once, lambda completions: [1.0]], max_failed_rate=1).score([make_group(["a"])])
    assert table.failed.tolist() == [True] and table.values[0, 1] == 1
    assert "SystemExit: enough" in caplog.text


def test_sums_of_huge_rewards_stay_finite_or_are_refused(make_group):
    def largest(completions):
        return [1e15, -1e15]

    table = Scorer(largest).score([make_group(["a", "b"])])
    assert table.total.isfinite().all() and table.total.std().isfinite()
    with pytest.raises(
        RewardError, match=r"weighted sum of the rewards of completion 0 \(row 7\) is 2e\+15, beyond ±1e\+15"
    ):
        Scorer([largest, largest]).score([make_group(["a", "b"], index=7)])
    with pytest.raises(RewardError, match=r"beyond ±1e\+15: lower reward_weights"):
        Scorer(largest, [1e30]).score([make_group(["a", "b"])])
    with pytest.raises(RewardError, match=r"returned 2000000000000000\.0 for completion 0"):
        Scorer(lambda completions: [2e15]).score([make_group(["a"])])


def test_images_are_decoded_once_per_group_for_those_who_ask(make_group):
    image, other = (EncodedImage(b"", digest, size) for digest, size in [("p", (64, 32)), ("q", (10, 20))])
    decoded = []

    def decode(images):
        decoded.append(images)
        return [image.digest for image in images]

    seen: dict[str, Any] = {}

    def looks(completions, images, image_sizes, model_image_sizes):
        seen.update(images=images, image_sizes=image_sizes, model_image_sizes=model_image_sizes)
        return [0.0] * len(completions)

    groups = [make_group(["a", "b"], images=[image, other]), make_group(["c"])]
    scorer = Scorer(
        [looks, lambda completions: [0.0] * 3],
        decode_images=decode,
        model_sizes=lambda p: [(28, 28)] * len(p.images),
    )
    scorer.score(groups)
    assert decoded == [(image, other), ()]
    assert seen["images"] == [["p", "q"], ["p", "q"], []]
    assert seen["image_sizes"] == [[(64, 32), (10, 20)]] * 2 + [[]]
    assert seen["model_image_sizes"] == [[(28, 28), (28, 28)]] * 2 + [[]]
    with pytest.raises(
        RewardError, match="'looks' needs 'images', which neither the data set nor the trainer provides"
    ):
        Scorer(looks).score(groups)


def test_logged_metrics_and_columns(make_group):
    def f(completions, log_metric, log_extra):
        log_metric("hits", 2)
        log_metric("hits", 0.5)
        log_extra("parsed", ["x", None])
        return [0.0, 0.0]

    table = Scorer(f).score([make_group(["a", "b"])])
    assert table.metrics == {"hits": [2.0, 0.5], "rewards/f/failed": [0.0]}
    assert table.extra == {"parsed": ["x", None]}


def test_extra_column_of_another_length_is_an_error(make_group):
    def f(completions, log_extra):
        log_extra("parsed", ["x"])
        return [0.0, 0.0]

    with pytest.raises(RewardError, match=r"log_extra\('parsed', …\) was given 1 values for 2"):
        Scorer(f).score([make_group(["a", "b"])])


def test_missing_column_is_named_with_the_nearest(make_group):
    with pytest.raises(RewardError, match=r"'f' needs 'solutions', .* Did you mean 'solution'\?"):

        def f(completions, solutions):
            return [0.0]

        Scorer(f, max_failed_rate=1).score([make_group(["a"], solution="red")])


def test_column_with_a_name_of_ours_is_refused(make_group):
    with pytest.raises(RewardError, match="column 'completion_ids'"):
        Scorer("think_format_reward").score([make_group(["a"], completion_ids=[1])])


def test_names():
    def f(completions): ...

    class Length:
        def __call__(self, completions): ...

    scorer = Scorer([f, functools.partial(f), Length(), lambda completions: None, lambda completions: None])
    assert scorer.names == ("f", "f_2", "Length", "lambda", "lambda_2")


def test_functions_by_name(make_group, tmp_path, monkeypatch):
    (tmp_path / "my_rewards_module.py").write_text(
        "def seven(completions, **_):\n    return [7] * len(completions)\nfive = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    scorer = Scorer(["my_rewards_module.seven", "think_format_reward"])
    assert scorer.names == ("seven", "think_format_reward")
    assert scorer.score([make_group(["<think>a</think>"])]).values.tolist() == [[7.0, 1.0]]
    with pytest.raises(ConfigError, match=r"'my_rewards_module\.five' is a int"):
        Scorer("my_rewards_module.five")
    with pytest.raises(ConfigError, match=r"'my_rewards_module\.six' cannot be loaded"):
        Scorer("my_rewards_module.six")


@pytest.mark.parametrize(
    ("funcs", "weights", "message"),
    [
        ([], None, "reward_funcs is empty"),
        (["exact_anwser_reward"], None, "Did you mean 'exact_answer_reward'"),
        (["no_such_module.f"], None, "cannot be loaded"),
        ([torch.nn.Linear(1, 1)], None, "Wrap a reward model in a function"),
        ([3], None, "holds a int"),
        (["think_format_reward"], [1.0, 2.0], r"2 entries for 1 reward functions \(think_format_reward\)"),
        (["think_format_reward"], [math.inf], "finite"),
    ],
)
def test_bad_options(funcs, weights, message):
    with pytest.raises(ConfigError, match=message):
        Scorer(funcs, weights)


def test_every_built_in_reward_is_found_by_its_name():
    assert Scorer(list(BUILT_IN)).names == tuple(BUILT_IN)
