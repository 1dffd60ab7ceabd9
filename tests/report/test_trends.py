from __future__ import annotations

import re
from pathlib import Path

import pytest

from boresight.report.trends import TRENDS
from boresight.report.verdicts import RULES, verdicts

Window = dict[str, float]

REWARDS: Window = {
    "reward": 1.1,
    "reward_std": 0.5,
    "rewards/answer_format_reward/mean": 0.6,
    "rewards/answer_format_reward/std": 0.4,
    "rewards/exact_answer_reward/mean": 0.5,
    "rewards/exact_answer_reward/std": 0.5,
    "completions/frac_solutions_unsaid": 0.1,
}
PAIRS: Window = {"loss": 0.6, "rewards/chosen": -0.02, "rewards/rejected": -0.42, "rewards/margins": 0.4}
ASKED: Window = {"reward": 0.6, "reward_std": 0.4, "samples_per_second": 50.0, "runtime": 2.0}
"""100 prompts: a standard error of 0.04."""

# name, the earlier windows, now, the evaluations, phrases; then what the window and the evaluations are just on the other side.
CASES: list[tuple[str, list[Window], Window, list[Window], list[str], Window, list[Window]]] = [
    (
        "reward_traded",
        [REWARDS],
        REWARDS | {"reward": 1.12, "rewards/answer_format_reward/mean": 0.9, "rewards/exact_answer_reward/mean": 0.22},
        [],
        ["exact_answer_reward fell from 0.5 to 0.22 while answer_format_reward rose to 0.9", "reward_weights"],
        REWARDS | {"rewards/answer_format_reward/mean": 0.9, "rewards/exact_answer_reward/mean": 0.3},
        [],
    ),
    (
        "reward_falls",
        [REWARDS, REWARDS | {"reward": 1.4}, REWARDS],
        REWARDS | {"reward": 1.1},
        [],
        ["The reward fell from 1.4 to 1.1", "learning_rate", "num_prompts_per_step"],
        REWARDS | {"reward": 1.2},
        [],
    ),
    ("loss_rises", [{"loss": 2.0}, {"loss": 0.5}], {"loss": 0.7}, [], ["rose from 0.5 to 0.7"], {"loss": 0.58}, []),
    (
        "chosen_falls",
        [PAIRS],
        PAIRS | {"rewards/chosen": -0.5, "rewards/rejected": -1.3, "rewards/margins": 0.8},
        [],
        ["The chosen answers become less likely", "-0.5", "margin of 0.8", "sft"],
        PAIRS | {"rewards/chosen": -0.15, "rewards/margins": 0.8},
        [],
    ),
    (
        "answers_vanish",
        [REWARDS, REWARDS | {"completions/frac_solutions_unsaid": 0.3}],
        REWARDS | {"completions/frac_solutions_unsaid": 0.31},
        [],
        ["no completion of a rollout gives 31 % of the right answers, up from 10 %", "num_prompts_per_step"],
        REWARDS | {"completions/frac_solutions_unsaid": 0.29},
        [],
    ),
    (
        "held_out_falls",
        [REWARDS],
        REWARDS | {"reward": 1.3},
        [ASKED, ASKED | {"reward": 0.45}],
        ["held-out reward fell from 0.6 to 0.45", "standard error of the difference 0.0566", "does not carry over"],
        REWARDS | {"reward": 1.3},
        [ASKED, ASKED | {"reward": 0.5}],
    ),
    (
        "held_out_falls",
        [{"loss": 1.0}],
        {"loss": 0.3},
        [{"loss": 1.2}, {"loss": 1.0}, {"loss": 1.1}],
        ["held-out loss rose from 1 to 1.1 while the training loss is 0.3", "by heart"],
        {"loss": 0.3},
        [{"loss": 1.2}, {"loss": 1.0}, {"loss": 1.01}],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_a_course_is_named_where_it_must_and_nowhere_else(
    case: tuple[str, list[Window], Window, list[Window], list[str], Window, list[Window]],
) -> None:
    name, earlier, now, held_out, phrases, other_now, other_held_out = case
    (verdict,) = verdicts(now, earlier, held_out)
    assert verdict.name == name
    for phrase in phrases:
        assert phrase in verdict.text
    (verdict,) = verdicts(other_now, earlier, other_held_out)
    assert verdict.name == ("fine" if len(other_held_out) > 1 else "not_held_out")


def test_every_rule_is_tried() -> None:
    assert {case[0] for case in CASES} == TRENDS.keys()


def test_the_table_of_the_docs_has_every_verdict() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "it-does-not-learn.md"
    rows = re.findall(r"^\| `(\w+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [*RULES, *TRENDS, "not_held_out", "fine"]


def test_a_first_window_has_no_course() -> None:
    assert [verdict.name for verdict in verdicts(REWARDS)] == ["not_held_out"]
