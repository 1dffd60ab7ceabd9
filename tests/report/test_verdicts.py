from __future__ import annotations

from typing import Any

import pytest

from boresight.report.verdicts import RULES, verdicts, window_means

WELL = {
    "reward": 0.413,
    "reward_std": 0.21,
    "grad_norm": 0.37,
    "frac_reward_zero_std": 0.29,
    "frac_unscored": 0.04,
    "rewards/exact_answer_reward/mean": 0.31,
    "rewards/exact_answer_reward/failed": 0.01,
    "rewards/exact_answer_reward/unparsed": 0.11,
    "rewards/think_format_reward/mean": 0.83,
    "completions/clipped_ratio": 0.07,
    "completions/mean_length": 212.4,
    "clip_ratio/region_mean": 0.16,
    "image/swap_gap": 0.23,
    "update/frac_unmoved": 0.02,
    "sampling/sampling_logp_difference/mean": 0.004,
    "entropy": 0.61,
}
"""A run in which nothing stands in the way, every number another."""

# name, what changes, a phrase of the text with the numbers and the option to turn; then the same just on the other side.
CASES: list[tuple[str, dict[str, float], list[str], dict[str, float]]] = [
    ("never_calls", {"tools/call_frequency": 0.0}, ["never calls a tool", "SFT"], {"tools/call_frequency": 0.02}),
    (
        "calls_fail",
        {
            "tools/call_frequency": 1.1,
            "tools/failure_frequency": 0.62,
            "tools/num_unreadable": 9.0,
            "tools/num_raised": 4.0,
        },
        ["62 % of the calls of tools fail", "the call cannot be parsed"],
        {"tools/call_frequency": 1.1, "tools/failure_frequency": 0.48},
    ),
    (
        "steps_skipped",
        {"update/num_skipped_steps": 0.1},
        ["NaN or infinite in some steps", "learning_rate", "max_grad_norm"],
        {"update/num_skipped_steps": 0.0},
    ),
    ("no_gradient", {"grad_norm": 0.0}, ["gradient is exactly 0"], {"grad_norm": 1e-9}),
    (
        "rewards_failed",
        {"rewards/exact_answer_reward/failed": 0.13},
        ["exact_answer_reward failed on 13 % of completions", "reward_timeout", "reward_workers"],
        {"rewards/exact_answer_reward/failed": 0.049},
    ),
    (
        "not_applied",
        {"rewards/think_format_reward/not_applied": 1.0},
        ["think_format_reward returned None"],
        {"rewards/think_format_reward/not_applied": 0.5},
    ),
    (
        "reward_constant",
        {"rewards/exact_answer_reward/std": 0.0, "rewards/think_format_reward/std": 0.0, "frac_reward_zero_std": 1.0},
        ["The reward is constant", "exact_answer_reward 0.31, think_format_reward 0.83"],
        {"rewards/exact_answer_reward/std": 0.2, "rewards/think_format_reward/std": 0.0},  # one has been learned
    ),
    (
        "completions_equal",
        {"completions/frac_repeated": 1.0, "frac_reward_zero_std": 1.0},
        ["100 % of completions repeat another", "temperature", "0 samples greedily"],
        {"completions/frac_repeated": 0.97, "frac_reward_zero_std": 0.3},  # short answers
    ),
    ("unscored", {"frac_unscored": 0.37}, ["37 % of completions have no reward"], {"frac_unscored": 0.25}),
    (
        "rewards_equal",
        {"frac_reward_zero_std": 0.94},
        ["In 94 % of groups", "mean reward 0.413", "dynamic_sampling=True", "num_generations", "temperature"],
        {"frac_reward_zero_std": 0.74},
    ),
    (
        "truncated",
        {"completions/clipped_ratio": 0.34},
        ["34 % of completions reach the length limit", "mean length 212 tokens", "max_completion_length"],
        {"completions/clipped_ratio": 0.24},
    ),
    (
        "format_failures",
        {"rewards/think_format_reward/mean": 0.123},
        ["think_format_reward is 0.123 on average", "prompt", "SFT"],
        {"rewards/think_format_reward/mean": 0.5},
    ),
    (
        "parse_failures",
        {"rewards/exact_answer_reward/unparsed": 0.62},
        ["exact_answer_reward finds no answer in 62 % of completions", "format reward"],
        {"rewards/exact_answer_reward/unparsed": 0.24},
    ),
    (
        "never_right",
        {"rewards/exact_answer_reward/mean": 0.001},
        ["exact_answer_reward is 0.001 although 89 % of completions have an answer", "solution column"],
        {"rewards/exact_answer_reward/mean": 0.02},
    ),
    (
        "one_answer",
        {"completions/frac_commonest_answer": 0.83, "completions/frac_commonest_solution": 0.12},
        ["83 % of completions give the same answer", "12 %", "learning_rate"],
        {"completions/frac_commonest_answer": 0.83, "completions/frac_commonest_solution": 0.52},  # yes or no
    ),
    (
        "image_ignored",
        {"image/swap_gap": 0.0003},
        ["The image is ignored", "0.0003 nats per token", "max_pixels"],
        {"image/swap_gap": 0.011},
    ),
    (
        "clipped",
        {"clip_ratio/region_mean": 0.58},
        ["58 % of the loss is clipped", "learning_rate", "steps_per_generation", "epsilon"],
        {"clip_ratio/region_mean": 0.49},
    ),
    ("clipped", {"cispo_clip_ratio": 0.71}, ["71 % of the loss is clipped"], {"cispo_clip_ratio": 0.2}),
    (
        "below_resolution",
        {"update/frac_unmoved": 0.97},
        ["97 % of the weights that had a gradient did not move", "float32", "learning_rate"],
        {"update/frac_unmoved": 0.45},
    ),
    (
        "nothing_moves",
        {"update/relative_size": 3e-9},
        ["far too low", "3e-09 of their size"],
        {"update/relative_size": 2e-6},
    ),
    (
        "sampler_drift",
        {"sampling/sampling_logp_difference/mean": 0.187},
        ["0.187 nats per token", "vllm_importance_sampling_correction"],
        {"sampling/sampling_logp_difference/mean": 0.03},
    ),
    ("collapsed", {"entropy": 0.004}, ["0.004 nats per token", "temperature", "entropy_coef"], {"entropy": 0.02}),
]


@pytest.mark.parametrize(("name", "changed", "phrases", "other_side"), CASES, ids=[case[0] for case in CASES])
def test_a_verdict_falls_where_it_must_and_nowhere_else(
    name: str, changed: dict[str, float], phrases: list[str], other_side: dict[str, float]
) -> None:
    (verdict,) = verdicts(WELL | changed)
    assert verdict.name == name
    for phrase in phrases:
        assert phrase in verdict.text
    assert [found.name for found in verdicts(WELL | other_side)] == ["not_held_out"]


def test_every_verdict_is_tried() -> None:
    assert {case[0] for case in CASES} == RULES.keys()


def test_several_reasons_come_most_thorough_first() -> None:
    changed = {"entropy": 0.001, "completions/clipped_ratio": 0.9, "rewards/exact_answer_reward/failed": 0.5}
    assert [found.name for found in verdicts(WELL | changed)] == ["rewards_failed", "truncated", "collapsed"]


def test_a_failing_function_is_not_also_one_that_does_not_apply() -> None:
    found = verdicts(WELL | {"rewards/exact_answer_reward/failed": 0.6, "frac_unscored": 0.62})
    assert [verdict.name for verdict in found] == ["rewards_failed"]


def test_without_held_out_evidence_nothing_is_fine() -> None:
    (verdict,) = verdicts(WELL, [WELL | {"reward": 0.401}])
    assert verdict.name == "not_held_out"
    assert verdict.text == (
        "Reward rises on training prompts (0.413, +0.012 since the last verdict; 71 % of groups have spread); nothing held out was asked "
        "(eval_dataset, eval_strategy='steps')."
    )
    (verdict,) = verdicts({"loss": 1.25, "grad_norm": 3.0}, [{"loss": 1.75}], [{"loss": 2.0}])
    assert "Loss falls on training rows (1.25, -0.5 since" in verdict.text
    assert "held-out rows were asked only once (loss 2)" in verdict.text
    (verdict,) = verdicts({"loss": 1.25, "grad_norm": 3.0})
    assert verdict.text.startswith("Loss is 1.25 on training rows; nothing held out")
    (verdict,) = verdicts(WELL, next_evaluation=50)
    assert verdict.name == "not_held_out"
    assert verdict.text.endswith("71 % of groups have spread); held-out rows are first asked at step 50.")


def test_fine_with_held_out_evidence() -> None:
    (verdict,) = verdicts(WELL, [], [{"reward": 0.3}, {"reward": 0.35}])
    assert verdict.name == "fine"
    assert verdict.text.startswith(
        "Held-out reward 0.3 → 0.35 over 2 evaluations; reward is 0.413 on training prompts (71 % of groups have spread)."
    )
    (verdict,) = verdicts(WELL, [WELL], [{"reward": 0.3}, {"reward": 0.35}])
    assert "reward stays on training prompts (0.413, +0 since the last verdict; 71 %" in verdict.text


def test_demonstrations_that_max_length_cuts() -> None:
    (verdict,) = verdicts({"loss": 1.25, "completions/clipped_ratio": 0.31})
    assert verdict.name == "truncated" and "max_length cut 31 % of completions" in verdict.text


def test_low_entropy_is_no_fault_of_demonstrations() -> None:
    assert [found.name for found in verdicts({"loss": 1.25, "entropy": 0.001})] == ["not_held_out"]


def test_window_means() -> None:
    lines: list[dict[str, Any]] = [{"a": 1.0, "b": 4}, {"a": 2.5, "word": "x"}, {"a": None}]
    assert window_means(lines) == {"a": 1.75, "b": 4.0}
