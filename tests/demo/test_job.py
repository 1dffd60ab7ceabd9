from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from boresight.cli import main
from boresight.cli.demo import accuracy_table
from boresight.demo.accuracy import Accuracy, accuracy
from boresight.demo.easy_vqa import ANSWERS, load_easy_vqa
from boresight.demo.job import run_demo
from boresight.demo.subjects import SUBJECTS, Recipe, with_guessed_colors, with_mostly_colors

SHORT = Recipe(sft_steps=3, sft_batch=16, grpo_steps=2, grpo_prompts=8, num_generations=4, train_rows=300, test_rows=30)
STAGES = {"blind", "start", "sft", "final"}


@pytest.mark.parametrize("method", ["grpo", "gspo"])
def test_summary_says_what_happened(tmp_path: Path, method: str) -> None:
    run_demo(tmp_path, seed=3, method=method, recipe=SHORT)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"].keys() == STAGES
    assert all(kind.keys() == STAGES for kind in summary["by_kind"].values())
    assert (summary["method"], summary["seed"], summary["counts"]["test_questions"]) == (method, 3, 30)
    assert (summary["counts"]["sft_steps"], summary["counts"][f"{method}_steps"]) == (3, 2)
    assert summary["seconds"].keys() == {"prepare", "evaluate", "sft", method, "total"}
    assert (tmp_path / method / "model" / "model.safetensors").exists()
    assert (tmp_path / method / "completions").is_dir()


def test_plain_transformers_finds_the_same_accuracy(tmp_path: Path) -> None:
    """In a process that never imports boresight; a model that mostly fails still has answers to disagree on."""
    summary = run_demo(
        tmp_path, recipe=Recipe(sft_steps=30, sft_batch=16, grpo_steps=1, grpo_prompts=4, train_rows=900, test_rows=60)
    )
    assert summary.accuracy["final"] > 0
    script = Path(__file__).parents[2] / "examples" / "plain_accuracy.py"
    assert "boresight" not in script.read_text().split('"""')[2]
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]


def test_digits_are_another_subject(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_demo(tmp_path, data="digits", recipe=replace(SUBJECTS["digits"].recipe, **asdict(SHORT)))
    assert (summary.data, summary.counts["test_questions"], summary.by_kind.keys()) == (
        "handwritten digits",
        30,
        {"digit"},
    )
    assert summary.accuracy["blind"] < 0.3
    Console(width=100).print(accuracy_table(summary))
    assert "handwritten digits, 30 held-out questions" in capsys.readouterr().out


def test_no_time_is_no_training(tmp_path: Path) -> None:
    summary = run_demo(tmp_path, minutes=0, recipe=SHORT)
    assert (summary.counts["sft_steps"], summary.counts["grpo_steps"]) == (1, 1)


def test_which_questions_each_stage_learns_from() -> None:
    train = load_easy_vqa("train", num_rows=600)
    num_colors = train["kind"].count("color")
    guessed, mostly = with_guessed_colors(train, 1 / 2, seed=5), with_mostly_colors(train, 0.25)["kind"]
    assert (guessed["kind"].count("color"), len(guessed)) == (num_colors // 2, 600 - num_colors + num_colors // 2)
    assert (mostly.count("color"), len(mostly)) == (num_colors, num_colors + round(num_colors / 4))

    truth = {(row["image"]["path"], row["prompt"][0]["content"][1]["text"]): row["solution"] for row in train}
    right = {"color": 0, "shape": 0, "yes/no": 0}
    for row in guessed:
        right[row["kind"]] += row["solution"] == truth[row["image"]["path"], row["prompt"][0]["content"][1]["text"]]
    asked = {kind: guessed["kind"].count(kind) for kind in right}
    assert (right["shape"], right["yes/no"]) == (asked["shape"], asked["yes/no"])
    assert 0 < right["color"] < asked["color"] / 3  # a guess is right once in eight
    assert {row["solution"] for row in guessed if row["kind"] == "color"} == set(ANSWERS["color"])


def test_accuracy_counts_by_kind() -> None:
    rows = [
        {"kind": "color", "solution": "red"},
        {"kind": "color", "solution": "blue"},
        {"kind": "yes/no", "solution": "yes"},
    ]
    found = accuracy(rows, ["<answer>red</answer>", "blue", "<think>so</think><answer> YES </answer>"])
    assert (found.share, found.by_kind) == (2 / 3, {"color": 0.5, "yes/no": 1.0})


def test_interval_is_wilsons() -> None:
    """7 of 10: 0.3968 to 0.8922, by hand."""
    found = Accuracy()
    found.right["color"], found.asked["color"] = 7, 10
    assert found.interval == pytest.approx((0.3968, 0.8922), abs=1e-4)


def test_bad_input_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--model", "no/such/model/here", "--probe"]) == 2
    assert "There is no model at" in capsys.readouterr().err
