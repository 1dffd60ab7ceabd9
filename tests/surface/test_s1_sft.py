"""S1: SFT from the command line, on a user's own folder of images and a table; interrupted, it goes on where it was."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.cli import main
from tests import forks


def words(model: Path, data: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        "sft", "--model_name_or_path", str(model), "--dataset_name", str(data), "--prompt_column", "question",
        "--completion_column", "answer", "--output_dir", str(output_dir), "--per_device_train_batch_size", "4",
        "--learning_rate", "1e-2", "--logging_steps", "1", "--use_cpu", *more,
    ]  # fmt: skip


def test_a_folder_of_images_and_a_table(
    model_folder: Path, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert (
        main(
            words(
                model_folder,
                shapes,
                run,
                "--max_steps",
                "12",
                "--eval_strategy",
                "steps",
                "--eval_steps",
                "6",
                "--test_split_size",
                "3",
            )
        )
        == 0
    )
    printed = capfd.readouterr().out
    assert f"boresight report {run}" in printed
    assert (
        f"boresight compare --model base={model_folder} --model sft={run} --dataset {shapes} --prompt_column question "
        "--solution_column answer --max_completion_length 16\n"
    ) in printed
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert sum("eval_loss" in line for line in log) == 2
    AutoModelForImageTextToText.from_pretrained(run)
    AutoProcessor.from_pretrained(run)


def test_an_adapter_and_a_part_of_the_rows(model_folder: Path, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--use_peft", "--lora_r", "4", "--dataset_train_split", "train[:8]", "--num_train_epochs", "1"]
    assert main(words(model_folder, shapes / "train.csv", run, *more)) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 2
    assert (run / "adapter_model.safetensors").stat().st_size < 200_000
    AutoModelForImageTextToText.from_pretrained(run)


def test_ctrl_c_saves_a_checkpoint_and_the_printed_command_goes_on(
    model_folder: Path, shapes: Path, tmp_path: Path
) -> None:
    """A real process, and a real signal as a terminal sends it."""
    run = tmp_path / "run"
    command, errors = ["boresight.cli", *words(model_folder, shapes, run, "--max_steps", "100000")], tmp_path / "errors"
    process = forks.Fork(command, tmp_path / "output", errors)
    while not (run / "timeline.jsonl").exists() or (run / "timeline.jsonl").read_text().count("\n") < 5:
        assert process.poll() is None, errors.read_text()[-2000:]
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    code, said = process.wait(120), errors.read_text()
    assert code == 130, said[-2000:]
    (checkpoint,) = run.glob("checkpoint-*")
    step = int(checkpoint.name.partition("-")[2])
    assert f"interrupted after step {step} of 100000; everything is in {checkpoint}." in said
    command = shlex.split(said.partition("Resume with: boresight ")[2].splitlines()[0])
    assert main([*command, "--max_steps", str(step + 2)]) == 0
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == step + 2
    assert [line["step"] for line in map(json.loads, (run / "timeline.jsonl").read_text().splitlines())][-3:] == [
        step,
        step + 1,
        step + 2,
    ]
