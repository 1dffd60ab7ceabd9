"""S8, S9 and S10: the article's command lines with vLLM, on a tiny folder: colocated, by a server, and on transformers' model classes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.demo.tiny import build_tiny
from tests import forks

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "scripts" / "grpo_vlm.py"
BORESIGHT = Path(sys.executable).parent / "boresight"
# vLLM's kernels on a CPU want heads of 32 at least.
SIZES = {"vocab_size": 512, "hidden_size": 128}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("served"), **SIZES)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "CUDA_VISIBLE_DEVICES": "",
    }


def train(model: Path, run: Path, *flags: str) -> list[dict[str, float]]:
    """The article's command line, on data of one's own; what was logged at each step."""
    words = [
        str(SCRIPT), "--model_name_or_path", str(model), "--dataset_name", str(run.parent / "rows.jsonl"),
        "--output_dir", str(run), "--prompt_column", "problem", "--reward_funcs", "think_format_reward", "exact_answer_reward",
        "--max_steps", "3", "--num_generations", "4", "--num_prompts_per_step", "2", "--max_completion_length", "8",
        "--learning_rate", "1e-3", "--logging_steps", "1", "--log_completions", "--use_vllm", *flags,
    ]  # fmt: skip
    done = forks.run(*words, env=environment(), timeout=800)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    assert "agree within" in done.stdout
    # Plain transformers loads what was saved.
    AutoModelForImageTextToText.from_pretrained(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from boresight.demo.easy_vqa import load_easy_vqa, question_text

    rows = []
    for place, row in enumerate(load_easy_vqa("train", num_rows=8)):
        (tmp_path / f"{place}.png").write_bytes(row["image"]["bytes"])
        rows.append({"problem": question_text(row["prompt"]), "image": f"{place}.png", "solution": row["solution"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def check(log: list[dict[str, float]]) -> None:
    """Three steps, and after each sync the engine says what the trainer would."""
    assert len(log) == 3
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in log)
    assert all(line["sync/tensors"] > 0 and line["sync/modules_compared"] > 0 for line in log)


def test_s8_colocate(model: Path, run: Path) -> None:
    check(train(model, run, "--vllm_mode", "colocate"))


@pytest.mark.soak  # S9's server is on them too
def test_s10_colocate_on_transformers_model_classes(model: Path, run: Path) -> None:
    """The patch that vLLM makes to the model's class stays in the engine's process: training goes on, saves, and loads."""
    check(
        train(
            model, run, "--vllm_mode", "colocate", "--vllm_model_impl", "transformers", "--vllm_server_timeout", "800"
        )
    )


@pytest.fixture(scope="module")
def port(model: Path) -> Iterator[int]:
    """Of a server as the article starts it, on transformers' model classes (S9 and S10)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(BORESIGHT), "vllm-serve", "--model", str(model), "--tensor-parallel-size", "1", "--vllm_model_impl", "transformers",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "512",
        "--gpu-memory-utilization", "0.1",
    ]  # fmt: skip
    server = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    yield port
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0


def test_s9_server(port: int, model: Path, run: Path) -> None:
    log = train(model, run, "--vllm_mode", "server", "--vllm_server_port", str(port), "--vllm_server_timeout", "600")
    check(log)
