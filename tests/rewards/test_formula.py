from __future__ import annotations

import sys
import threading

import pytest

from boresight.errors import ConfigError
from boresight.rewards import accuracy_reward


def test_announced_formulas():
    texts = [
        r"so $\boxed{\frac{1}{3}}$",
        r"the answer is $\frac{2}{6}$",
        r"$\boxed{0.5}$",
        "1/3",
        "",
        r"$\frac13$ then $\boxed{2}$",
    ]
    golds = [r"$\frac{1}{3}$"] * len(texts)
    assert accuracy_reward(texts, golds) == [1, 1, 0, 0, 0, 0]
    assert accuracy_reward([[{"role": "assistant", "content": text}] for text in texts], golds) == [1, 1, 0, 0, 0, 0]


def test_tagged_formulas():
    texts = ["$4$", "4", r"\boxed{4}", "$5$", "", "$4$</answer><answer>$4$"]
    completions = [rf"<think>$\boxed{{4}}$</think><answer>{text}</answer>" for text in texts]
    assert accuracy_reward(completions, ["$4$"] * len(texts)) == [1, 1, 1, 0, 0, 0]


def test_solution_that_is_no_formula_does_not_apply():
    assert accuracy_reward(["<answer>lueb</answer>", r"$\boxed{4}$"], ["blue", None]) == [None, None]


def test_what_was_parsed_is_logged():
    columns = {}
    accuracy_reward([r"$\boxed{4}$", "four"], ["$4$", "$4$"], log_extra=columns.__setitem__)
    assert columns == {"answer_parsed": ["4", ""]}
    metrics = {}
    texts, golds = [r"$\boxed{4}$", "four", "4?", "four"], ["$4$", "$4$", "$4$", "blue"]
    accuracy_reward(texts, golds, log_metric=metrics.__setitem__)
    assert metrics == {"rewards/accuracy_reward/unparsed": pytest.approx(2 / 3)}


def test_equals_trl_without_tags():
    from trl.rewards import accuracy_reward as trl_accuracy_reward

    texts = [r"$\boxed{4}$", r"$\boxed{x + y}$", r"$\boxed{25.0^\circ}$", r"$\boxed{5}$", "$4$", r"$\boxed{1}$"]
    golds = ["$4$", "$y+x$", r"$25^\circ$", "$4$", "$4$", "blue"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy_reward(conversations, golds) == trl_accuracy_reward(conversations, golds) == [1, 1, 1, 0, 0, None]


def test_runs_outside_the_main_thread():
    rewards = []
    texts = [r"$\boxed{4}$", r"$\boxed{5}$"]
    thread = threading.Thread(target=lambda: rewards.extend(accuracy_reward(texts, ["$4$", "$4$"])))
    thread.start()
    thread.join()
    assert rewards == [1, 0]


def test_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'boresight\[math\]'"):
        accuracy_reward(["$4$"], ["$4$"])
