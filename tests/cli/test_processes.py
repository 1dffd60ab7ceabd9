"""Commands in two processes whose weights are divided: started by boresight, with a file of one's own, and as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boresight.cli.launch import shipped
from boresight.demo.tiny import build_tiny
from tests import forks
from tests.trainer.shards import FSDP2_LAYERS


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


def sft(model: Path, folder: Path, *words: str, launcher: str = "", **environment: str) -> str:
    """The output of a run of two steps: of one process that may start others, or of two ranks that a launcher starts."""
    rows = [
        {"prompt": [{"role": "user", "content": f"say {word}"}], "completion": [{"role": "assistant", "content": word}]}
        for word in ("one", "two", "three", "four")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["--model_name_or_path", str(model), "--dataset_name", str(folder / "rows.jsonl"), "--max_steps", "2"]
    run += ["--output_dir", str(folder / "run"), "--use_cpu", "--report_to", "none", "--per_device_train_batch_size=1"]
    words = ("boresight.cli", "sft", *run, *words)
    if launcher == "fork":
        done = forks.run(*words, ranks=2, env=environment)
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher else []
        done = subprocess.run(
            [sys.executable, *torchrun, "-m", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-10_000:]
    return done.stdout


def assert_divided(output: str) -> None:
    """The weights were divided over two processes, and what was saved is the model that was trained."""
    assert "FSDP2 divides weights, gradients and optimizer state over 2 processes" in output
    assert "plain transformers loads it; log-probabilities of" in output
    assert "language 26 of 26 tensors changed" in output


@pytest.mark.timeout(320)
def test_a_command_with_the_shipped_configuration(model_folder: Path, tmp_path: Path) -> None:
    output = sft(model_folder, tmp_path, "--accelerate_config", "fsdp2", "--num_processes", "2")
    assert_divided(output)
    assert "each gathers the whole weights for a step (fsdp_reshard_after_forward: false)" in output


@pytest.mark.timeout(320)
@pytest.mark.parametrize("launcher", ["fork", pytest.param("torchrun", marks=pytest.mark.soak)])
def test_ranks_with_accelerates_environment(launcher: str, model_folder: Path, tmp_path: Path) -> None:
    output = sft(model_folder, tmp_path, launcher=launcher, **FSDP2_LAYERS)
    assert_divided(output)
    assert "each gathers one layer after another in each pass (fsdp_reshard_after_forward: true)" in output


@pytest.mark.soak
@pytest.mark.timeout(320)
def test_a_file_of_ones_own(model_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(shipped()["fsdp2"].read_text() + "num_processes: 2\n")
    assert_divided(sft(model_folder, tmp_path, "--accelerate_config", str(file)))
