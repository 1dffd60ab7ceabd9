from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from boresight.report.step_rows import (
    RowTable,
    StepRows,
    columns_of,
    duration,
    number,
    show_rows,
    split_prefix,
    with_interval,
)

GRPO: dict[str, Any] = {
    "loss": 0.01234, "grad_norm": 1.5, "learning_rate": 1e-6, "reward": 0.5, "reward_std": 0.25, "kl": 0.001,
    "frac_reward_zero_std": 0.3, "rewards/think_format_reward/mean": 1.0, "rewards/accuracy_reward/mean": 0.125,
    "rewards/accuracy_reward/std": 0.3, "entropy": 2.0, "completions/mean_length": 1234.4, "completions/clipped_ratio": 0.0,
    "time/data_s": 0.02, "time/sample_s": 1.0, "time/reward_s": 0.9, "time/update_s": 0.1, "time/other_s": 0.03, "epoch": 0.5,
}  # fmt: skip


def test_the_columns_of_a_rollout() -> None:
    assert columns_of(GRPO) == {
        "reward": "0.5", "±": "0.25", "think_format": "1", "accuracy": "0.125", "spread": "70 %", "length": "1234", "cut": "0 %",
        "entropy": "2", "kl": "0.001", "sample s": "1.00", "reward s": "0.90", "update s": "0.10", "other s": "0.05",
    }  # fmt: skip


def test_the_first_step_holds_what_came_before_it() -> None:
    assert "reward s" not in columns_of(GRPO, is_first=True) and columns_of(GRPO, is_first=True)["other s"] == "0.95"


def test_a_single_reward_has_one_column() -> None:
    assert columns_of({"reward": 0.5, "rewards/accuracy_reward/mean": 0.5}) == {"reward": "0.5"}


def test_pairs_and_demonstrations_show_their_loss() -> None:
    pairs = {"loss": 0.5, "rewards/accuracies": 0.75, "rewards/margins": 0.25, "logps/chosen": -12.34}
    assert columns_of(pairs) == {"loss": "0.5", "accuracy": "0.75", "margin": "0.25", "chosen": "-12.3"}
    assert columns_of({"loss": float("nan"), "mean_token_accuracy": 0.5}) == {"loss": "nan", "token acc.": "0.5"}


def test_evaluations_by_name() -> None:
    assert split_prefix({"eval_loss": 2.0, "eval_runtime": 1.0, "epoch": 1}) == ("eval", {"loss": 2.0, "runtime": 1.0})
    assert split_prefix({"eval_clocks_loss": 2.0, "eval_clocks_runtime": 1}) == (
        "eval_clocks",
        {"loss": 2.0, "runtime": 1},
    )
    assert split_prefix({"loss": 1.0}) == ("", {"loss": 1.0})


def test_columns_line_up_and_headings_come_when_they_change() -> None:
    table = RowTable()
    lines = table.lines({"step": "1/20", "loss": "6.95", "left": ""})
    lines += table.lines({"step": "10/20", "loss": "0.123", "left": "0:03"})
    lines += table.lines({"step": "eval 10", "loss": "0.2", "sample s": "1.00"})
    assert lines == [
        "",
        " step   loss   left",
        " 1/20   6.95",
        "10/20  0.123   0:03",
        "",
        "   step   loss  sample s   left",
        "eval 10    0.2      1.00",
    ]


def test_a_narrow_terminal_goes_without_some_columns_and_counts_them() -> None:
    wide, narrow = RowTable(), RowTable(60)
    values = {"step": "1/20", **columns_of(GRPO), "left": "0:03"}
    assert len(wide.lines(values)[1].split("  ")) > 12
    heading, row = narrow.lines(values)[1:]
    assert max(len(heading), len(row)) <= 60
    assert heading.split("  ")[-1].strip() == "left (+9)" and heading.split()[:3] == ["step", "reward", "spread"]
    assert row.split() == ["1/20", "0.5", "70", "%", "1.00", "0.10", "0:03"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.000123, "0.000123"), (12345.6, "12346"), (2.5e7, "2.5e+07"), (-0.5, "-0.5")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


class Line(Trainer):
    """Learns nothing, and logs what a rollout does."""

    def training_step(self, model: Any, *_: Any, **__: Any) -> Any:
        return next(model.parameters()).sum() * 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, **({} if "train_runtime" in logs else GRPO)}, start_time)


def test_a_log_file_gets_rows_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    args = TrainingArguments(output_dir=str(tmp_path), max_steps=3, logging_steps=1, report_to="none", use_cpu=True)
    trainer = Line(torch.nn.Linear(2, 2), args, train_dataset=[{"x": 1}] * 8, data_collator=lambda rows: {})  # pyright: ignore[reportArgumentType]
    show_rows(trainer)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert StepRows in kinds and not {DEFAULT_PROGRESS_CALLBACK, PrinterCallback} & {*kinds}
    trainer.train()
    out, errors = capsys.readouterr()
    assert "\x1b" not in out + errors and "\r" not in out + errors and "{" not in out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith(("1/3", "2/3", "3/3"))]
    assert [row[:2] for row in rows] == [["1/3", "0.5"], ["2/3", "0.5"], ["3/3", "0.5"]]
    assert rows[-1][-1] == "0:00"
    assert f"3 steps. Every metric of every log: {tmp_path}/metrics.jsonl" in out and "3 steps done in 0:0" in out
    assert json.dumps(trainer.state.log_history)  # logs themselves are untouched


def test_a_held_out_reward_stands_with_its_interval() -> None:
    """100 prompts of deviation 0.5: a standard error of 0.05."""
    logs = {"reward": 0.42, "reward_std": 0.5, "samples_per_second": 20.0, "runtime": 5.0}
    assert with_interval(columns_of(logs), logs) == {"reward": "0.42 ± 0.098"}
    assert with_interval({"reward": "0.42"}, {"reward": 0.42}) == with_interval({"loss": "1"}, {"loss": 1.0}) == {}
