"""Held-out rows that nobody asked for: when a training command evaluates some, and when it leaves evaluation alone."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from PIL import Image

from boresight.cli import DONE, main, read_command
from boresight.cli.held_out import NUM_ROWS, add_held_out_rows
from boresight.demo.tiny import build_tiny
from boresight.report import read_lines
from boresight.report.trends import held_out_error

datasets.disable_progress_bars()
COLUMNS = ["--prompt_column", "question", "--image_column", "photo"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of 8 training rows and 80 of a test split, about one image."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (28, 28), "red").save(folder / "red.png")
    for split, count in (("train", 8), ("test", 80)):
        lines = [f"red.png,which color? {place},red" for place in range(count)]
        (folder / f"{split}.csv").write_text("photo,question,answer\n" + "\n".join(lines) + "\n")
    return folder


def words(data: Path | str, *more: str) -> list[str]:
    return [
        "--model_name_or_path",
        "m",
        "--dataset_name",
        str(data),
        *COLUMNS,
        "--completion_column",
        "answer",
        "--use_cpu",
        *more,
    ]


def test_some_rows_of_the_test_split_are_evaluated_and_this_is_said(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = read_command("sft", words(table, "--output_dir", str(tmp_path / "run")))
    rows = add_held_out_rows(command)
    assert len(rows) == NUM_ROWS == 64
    assert command.training.eval_strategy == "steps" and command.training.eval_steps == 0.25
    said = capsys.readouterr().out
    assert "64 of 80 rows of the split test are held out" in said and "--eval_strategy no switches it off" in said


@pytest.mark.parametrize(
    "more",
    [
        ["--eval_strategy", "no"],
        ["--eval_strategy", "steps"],
        ["--eval_steps", "5", "--eval_strategy", "steps"],
        ["--max_steps", "19"],
        ["--verdict_steps", "0"],
    ],
)
def test_what_the_user_says_stands(table: Path, tmp_path: Path, more: list[str]) -> None:
    command = read_command("sft", words(table, "--output_dir", str(tmp_path / "run"), *more))
    before = command.training.eval_strategy, command.training.eval_steps
    assert add_held_out_rows(command) is None
    assert (command.training.eval_strategy, command.training.eval_steps) == before


def test_without_a_test_split_nothing_changes(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (table / "train.csv", _only_train(table)):
        command = read_command("sft", words(data, "--output_dir", str(tmp_path / "run")))
        assert add_held_out_rows(command) is None and command.training.eval_strategy == "no"
    assert "held out" not in capsys.readouterr().out


def _only_train(table: Path) -> Path:
    (table / "test.csv").unlink()
    return table


def test_a_test_split_of_another_form_is_left_out_and_named(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (table / "test.csv").write_text("photo,other\nred.png,1\n")
    command = read_command("sft", words(table, "--output_dir", str(tmp_path / "run")))
    assert add_held_out_rows(command) is None and command.training.eval_strategy == "no"
    assert "the test split is not evaluated, since it cannot be read" in capsys.readouterr().out


def test_a_whole_run_has_held_out_evidence(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_tiny("qwen2_5_vl", tmp_path / "model", seed=0, vocab_size=512)
    run = tmp_path / "run"
    done = main(["sft", *words(table)[2:], "--model_name_or_path", str(model), "--max_steps", "20", "--output_dir", str(run),
                 "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1", "--save_strategy", "no"])  # fmt: skip
    assert done == DONE
    assert [line["step"] for line in read_lines(run / "metrics.jsonl") if "eval_loss" in line] == [5, 10, 15, 20]
    assert "eval 20" in capsys.readouterr().out


def test_the_interval_of_a_held_out_reward_comes_from_its_prompts() -> None:
    """100 prompts, deviation 0.5: a standard error of 0.05."""
    assert held_out_error({"reward_std": 0.5, "samples_per_second": 20.0, "runtime": 5.0}) == pytest.approx(0.05)
