from __future__ import annotations

import sys
import threading

import pytest

from boresight.errors import ConfigError
from boresight.rewards import Failure, Scorer, accuracy_reward, reasoning_accuracy_reward
from boresight.rewards.latex import latex


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


def tagged(text):
    return f"<think>so</think><answer>{text}</answer>"


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        (r"5 \sqrt { 2 }", r"$5 \sqrt { 2 }$"),
        ("5√2 square meters", r"$5\sqrt{2}$"),
        ("−1/3", r"$-\frac{1}{3}$"),
        ("1,234 cm", "$1234$"),
        ("1.5e3", "$1500$"),
        ("$1 1/2$", "$1.5$"),
        ("12 %", r"$12\%$"),
        ("2ab", "$2ab$"),
        ("sin x", r"$\sin x$"),
        ("x ≤ 3", r"$x \le  3$"),
        *[
            (text, None)
            for text in ("blue", "B", "(B)", "x", "yes", "n/a", "2 apples and 3 pears", "red-hot", "5 or 6", "-")
        ],
    ],
)
def test_a_formula_is_told_from_words(gold, written):
    assert latex(gold) == written


def test_letters_behind_a_number_are_variables_where_the_gold_has_some():
    """math-verify takes the letters of $2ab$ for a unit, and reads 2."""
    assert accuracy_reward([tagged("2"), tagged("$2ab$"), r"$\boxed{2ab}$"], ["2ab"] * 3) == [0, 1, 1]
    assert accuracy_reward([tagged("$5 m$"), tagged("5m")], ["5"] * 2) == [1, 1]


def test_a_hedge_is_no_answer():
    assert accuracy_reward(
        [tagged("3 or 4"), tagged("the half is 0.5"), tagged("about 0.5 or 0.6")], ["4", "0.5", "0.5"]
    ) == [0, 1, 0]


def test_a_comparison_that_runs_out_of_time_has_failed(make_group, monkeypatch, caplog):
    """One second for what takes sympy minutes; the others keep their marks. It is neither wrong nor unparsed."""
    monkeypatch.setattr("boresight.rewards.formula.VERIFY_TIMEOUT_S", 1)
    gold = "$(x+y+z+w+u+v)^{20}$"
    texts = [r"$\boxed{(x+y+z+w+u-v)^{20}+\sin x}$", "$\\boxed{4}$", "no box"]
    logged = {}
    marks = accuracy_reward(texts, [gold, "4", "4"], log_metric=logged.__setitem__)
    assert isinstance(marks[0], Failure) and "took longer than 1 s" in marks[0].reason
    assert marks[1:] == [1, 0]
    assert logged == {"rewards/accuracy_reward/unparsed": 0.5}
    table = Scorer("accuracy_reward", max_failed_rate=1).score([make_group(texts[:1], solution=gold)])
    assert table.failed.tolist() == [True]


def test_reasoning_accuracy_equals_trl():
    from trl.rewards import reasoning_accuracy_reward as trl_reward

    texts = [
        r"<think> why </think> The final answer is \boxed{\frac{1}{3}}",
        r"<think> why </think> The final answer is \boxed{\frac{1}{2}}",
        r"<think> partial answers \boxed{\frac{1}{3}} but no final answer",
        r"<think> \boxed{\frac{1}{3}} </think> no idea",
        r"why </think> so </think> \boxed{\frac{1}{3}}",
        r"<think> why </think> 1/3",
        r"<think> why </think> $\boxed{4}$",
    ]
    golds = [r"\frac{1}{3}"] * 6 + ["blue"]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    ours, theirs = reasoning_accuracy_reward(conversations, golds), trl_reward(conversations, golds)
    assert ours == theirs == [1, 0, 0, 0, 1, 0, None]
    other = [[{"role": "assistant", "content": r"a END \boxed{4}"}], [{"role": "assistant", "content": r"\boxed{4}"}]]
    options = {"reasoning_delimiters": ["</think>", "END"]}
    assert reasoning_accuracy_reward(other, ["4"] * 2, **options) == trl_reward(other, ["4"] * 2, **options) == [1, 0]
    assert reasoning_accuracy_reward([r"a</think> \boxed{3}"], ["3"]) == [1], "strings, too"
