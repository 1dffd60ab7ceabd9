from __future__ import annotations

from boresight.report.curves import charts


def titles(*names: str) -> dict[str, list[str]]:
    return {chart["title"]: [line["name"] for line in chart["lines"]] for chart in charts(names)}


def test_metrics_stand_where_a_reader_looks_for_them() -> None:
    assert titles(
        "rewards/exact/mean", "rewards/exact/std", "rewards/exact/failed", "reward", "reward_std", "kl", "completions/mean_length",
        "completions/max_length", "sampling/sampling_logp_difference/mean", "loss/sigmoid", "loss/sigmoid_weighted", "rewards/chosen",
        "rewards/accuracies",
    ) == {
        "Reward": ["reward"],
        "Reward by function": ["rewards/exact/mean"],
        "Pairs ranked right": ["rewards/accuracies"],
        "Implicit rewards": ["rewards/chosen"],
        "KL to the reference": ["kl"],
        "Length": ["completions/mean_length", "completions/max_length"],
        "Spread of the reward": ["reward_std"],
        "Drift of the sampler": ["sampling/sampling_logp_difference/mean"],
        "Loss by component": ["loss/sigmoid"],
        "Loss by component, weighted": ["loss/sigmoid_weighted"],
        "Failed rewards": ["rewards/exact/failed"],
        "rewards/exact/std": ["rewards/exact/std"],
    }  # fmt: skip


def test_an_evaluation_stands_beside_the_training_under_one_label() -> None:
    (chart,) = charts(["kl", "eval_kl"])
    assert [(line["label"], line["eval"]) for line in chart["lines"]] == [("kl", False), ("kl", True)]
    assert titles("eval_loss", "loss") == {"Loss": ["eval_loss", "loss"]}


def test_nothing_that_was_logged_is_left_out_but_what_other_sections_show() -> None:
    names = [
        "my_metric",
        "eval_reward",
        "loss",
        "work/prompt_tokens",
        "time/sample_s",
        "epoch",
        "train_runtime",
        "eval_runtime",
    ]
    shown = {line["name"] for chart in charts(names) for line in chart["lines"]}
    assert shown == {"my_metric", "eval_reward", "loss"}
    assert [chart["more"] for chart in charts(["my_metric", "loss"])] == [False, True]


def test_a_reward_may_bear_the_name_of_another_metric() -> None:
    assert titles("rewards/chosen_reward/mean")["Reward by function"] == ["rewards/chosen_reward/mean"]


def test_what_hardly_changes_is_marked_but_for_what_must_be_seen() -> None:
    lines = {
        "reward": {"values": [1.0, 1.0, 1.0]},
        "kl": {"values": [0.0, 0.1, 0.2]},
        "entropy": {"values": [2.0, 2.0001, 2.0]},
        "grad_norm": {"values": [1.0, 1.0]},
        "completions/clipped_ratio": {"values": [0.0, 0.0, 0.0]},
        "own": {"values": [-3.0, -3.0, -3.0]},
    }
    assert {chart["title"] for chart in charts(lines, lines) if chart["flat"]} == {"Entropy", "Truncated"}
    assert not any(chart["flat"] for chart in charts(lines))
