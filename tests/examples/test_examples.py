"""Each example runs as it stands, on a tiny model in the place of the one it names."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.cli import main, read_command
from boresight.cli.launch import STARTED, launch_words
from boresight.demo.easy_vqa import load_easy_vqa, question_text
from boresight.demo.tiny import build_tiny
from boresight.report.completions import read_completions

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("examples"), vocab_size=512)


@pytest.fixture
def here(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, and a tiny model for two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", str(model_folder))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return tmp_path


@pytest.fixture
def shapes(here: Path) -> Path:
    folder = here / "shapes"
    (folder / "images").mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "question", "answer"])
        for place, row in enumerate(load_easy_vqa("train", num_rows=16)):
            (folder / "images" / f"{place}.png").write_bytes(row["image"]["bytes"])
            table.writerow([f"images/{place}.png", question_text(row["prompt"]), row["solution"]])
    return folder


def run(name: str, *words: str) -> None:
    """As `python examples/NAME.py WORDS` would, in this process."""
    before, sys.argv = sys.argv, [name, *words]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_own_data(here: Path, shapes: Path) -> None:
    run("own_data", "shapes")
    rows = read_completions(here / "runs/own_data/grpo").to_pylist()
    assert len(rows) == 2 * 8 * 8
    assert all(len(row["images"]) == 1 for row in rows)
    AutoModelForImageTextToText.from_pretrained(here / "runs/own_data/grpo")


def test_own_reward(here: Path) -> None:
    run("own_reward")
    assert {"rewards/closeness/mean", "exactly_right"} <= {
        name for line in logged(here / "runs/own_reward") for name in line
    }


def test_what_the_own_reward_says(here: Path) -> None:
    closeness = runpy.run_path(str(EXAMPLES / "own_reward.py"))["closeness"]
    said = [[{"role": "assistant", "content": text}] for text in ("4", "<think>3, no</think> 6 dots", "many")]
    metrics: dict[str, float] = {}
    assert closeness(said, [4, 4, 4], metrics.__setitem__) == [1.0, 1 / 3, 0.0]
    assert metrics == {"exactly_right": 1 / 3}


def test_multi_image(here: Path) -> None:
    run("multi_image")
    rows = read_completions(here / "runs/multi_image").to_pylist()
    assert all(len(row["images"]) == 3 for row in rows)
    assert (
        logged(here / "runs/multi_image")[0]["work/vision_encodes"] <= 8 * 3 * 3
    )  # sampling and the passes, never once a completion


@pytest.mark.soak  # a minute of sampling by a model that has learned nothing
def test_look_again(here: Path) -> None:
    """A demonstration's calls are learned (SFT), and the policy's own are trained on (GRPO); the twin has neither."""
    words = ["--demonstrations", "16", "--sft_steps", "2", "--grpo_steps", "1", "--prompts", "2", "--test_rows", "2"]
    run("look_again", *words)
    found = json.loads((here / "runs/look_again/summary.json").read_text())
    assert set(found) == {"with", "without"}
    assert all(0 <= each["grpo"] <= 1 for each in found.values())
    names = {arm: {name for line in logged(here / "runs/look_again" / arm / "grpo") for name in line} for arm in found}
    assert "tools/call_frequency" in names["with"]
    assert not any(name.startswith("tools/") for name in names["without"])
    taught = logged(here / "runs/look_again/with/sft")
    assert max(line.get("num_tokens", 0) for line in taught) > 0
    assert {name for line in logged(here / "runs/look_again/without/sft") for name in line} >= {"loss"}


def test_grounding(here: Path) -> None:
    run("grounding")
    names = {name for line in logged(here / "runs/grounding") for name in line}
    assert {"rewards/iou_reward/mean", "rewards/point_in_box_reward/mean"} <= names


def test_lora_on_a_3b_model(here: Path, shapes: Path, model_folder: Path) -> None:
    words = ["--dataset_name", "shapes", "--prompt_column", "question", "--solution_column", "answer"]
    short = [
        "--max_steps",
        "1",
        "--max_completion_length",
        "8",
        "--num_prompts_per_step",
        "4",
        "--model_name_or_path",
        str(model_folder),
    ]
    assert main(["grpo", "--config", str(EXAMPLES / "lora_3b.yaml"), *words, *short]) == 0
    assert (here / "runs/lora_3b/adapter_config.json").exists()


def two_machines(rank: int, *words: str, **environment: str) -> list[str]:
    """What the script would type."""
    done = subprocess.run(
        ["sh", str(EXAMPLES / "two_machines.sh"), str(rank), "10.0.0.1", *words],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_two_machines_say_what_accelerate_needs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's words, each on a line by a `boresight` that repeats them, read by the real one."""
    said = here / "bin" / "boresight"
    said.parent.mkdir()
    said.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    said.chmod(0o755)
    words = two_machines(1, "--dataset_name", "shapes", PATH=f"{said.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(STARTED, "1")
    command = read_command(words[0], [*words[1:], "--use_cpu"])
    assert command.training.num_prompts_per_step == 32
    told = launch_words(command.start, command.program, words[1:])
    assert {"--num_machines=2", "--num_processes=16", "--machine_rank=1", "--main_process_ip=10.0.0.1"} <= set(told)


@pytest.mark.soak
def test_two_machines_train_one_model(here: Path, shapes: Path) -> None:
    """Two launchers on this machine, one process each, over gloo."""
    words = [
        "--dataset_name",
        "shapes",
        "--prompt_column",
        "question",
        "--solution_column",
        "answer",
        "--max_steps",
        "2",
    ]
    words += [
        "--num_generations",
        "4",
        "--per_device_train_batch_size",
        "4",
        "--max_completion_length",
        "6",
        "--use_cpu",
    ]
    environment = {
        **os.environ, "PROCESSES": "2", "PROMPTS": "4", "PORT": "29587", "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    started = [
        subprocess.Popen(["sh", str(EXAMPLES / "two_machines.sh"), str(rank), "127.0.0.1", *words], env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(280) for process in started] == [0, 0]
    assert read_completions(here / "runs/two_machines").num_rows == 2 * 4 * 4
