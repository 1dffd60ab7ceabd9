"""An adapter over a base in 4 bits, trained by GRPO with completions of real vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from boresight.demo.subjects import Recipe
from boresight.demo.tiny import build_tiny
from boresight.report import read_lines

from .conftest import START_S

REWARD = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in completion[0]["content"]) / 10 for completion in completions]
"""


@pytest.mark.soak
@pytest.mark.timeout(2 * START_S)
def test_the_base_goes_once_and_the_adapter_at_every_step(tmp_path: Path) -> None:
    """The engine computes with the numbers that the quantised weights stand for, so it and the trainer agree as on a float32 model."""
    model = build_tiny("qwen2_5_vl", tmp_path / "start", **Recipe().sizes)
    (tmp_path / "rewards_here.py").write_text(REWARD)
    command = [sys.executable, "-m", "boresight.cli", "grpo", "--model_name_or_path", str(model)]
    command += ["--dataset_name", "easy_vqa", "--reward_funcs", "rewards_here.vowels", "--load_in_4bit", "--use_cpu"]
    command += ["--train", "language=lora", "--use_vllm", "--vllm_mode", "colocate", "--vllm_lora_sync", "adapter"]
    command += ["--vllm_gpu_memory_utilization", "0.1", "--max_steps", "3", "--num_prompts_per_step", "4"]
    command += ["--num_generations", "4", "--max_completion_length", "16", "--learning_rate", "1e-2"]
    command += ["--lora_dropout", "0"]  # dropout of the adapter is in the trainer alone
    command += ["--logging_steps", "1", "--gold_check", "off", "--output_dir", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "sync/tensors" in line]
    first, *others = (line["sync/tensors"] for line in lines)
    assert len(others) == 2 and first > others[0] == others[1] > 0
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in lines)
    assert all(line["grad_norm"] > 0 for line in lines)
