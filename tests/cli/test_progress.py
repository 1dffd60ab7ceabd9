from __future__ import annotations

from boresight.cli.progress import progress_line


def test_the_line_has_what_people_watch_and_fits_a_terminal() -> None:
    logs = {
        "loss": 0.01234, "grad_norm": 1.5, "learning_rate": 1e-6, "reward": 0.5, "reward_std": 0.25, "kl": 0.001,
        "rewards/think_format_reward/mean": 1.0, "rewards/accuracy_reward/mean": 0.125, "rewards/accuracy_reward/std": 0.3,
        "entropy": 2.0, "completions/mean_length": 1234.4, "completions/clipped_ratio": 0.0, "epoch": 0.5,
    }  # fmt: skip
    line = progress_line(20, logs)
    assert line == (
        "step   20  loss 0.0123  reward 0.5  ± 0.25  kl 0.001  entropy 2  length 1234  truncated 0  think_format 1  accuracy 0.125"
    )


def test_a_single_reward_is_not_said_twice() -> None:
    assert progress_line(1, {"reward": 0.5, "rewards/accuracy_reward/mean": 0.5}) == "step    1  reward 0.5"


def test_an_evaluation_says_so() -> None:
    assert progress_line(3, {"eval_loss": 2.0, "eval_runtime": 1.0}) == "eval    3  loss 2"
    logs = {"eval_reward": 0.5, "eval_rewards/a_reward/mean": 0.25, "eval_rewards/b_reward/mean": 0.75}
    assert progress_line(3, logs) == "eval    3  reward 0.5  a 0.25  b 0.75"
