"""Every family that vLLM knows answers as the trainer does. Each in a process of its own: half a minute of CPU or more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import FAMILIES

ROOT = Path(__file__).parents[3]

CANNOT = {
    # vLLM looks for "\n" in the vocabulary; the tiny byte-level tokenizer calls it otherwise.
    "gemma3": "KeyError: '\\n'",
    "qwen3_5": "CPU GDN attention requires BF16",
    # The names under which fused experts are saved are looked for with empty tensors, which cannot be split (model/export.py).
    "qwen3_5_moe": "IndexError: Dimension out of range",
    # vLLM loads the folder, and then knows its vision tower's tensors by other names than those that are sent.
    "lfm2_vl": "There is no module or parameter named 'embeddings' in Siglip2Model",
}
"""Families whose tiny model vLLM cannot run, and what it says."""


@pytest.mark.soak
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_answers_as_the_trainer_does(family: str) -> None:
    command = [sys.executable, "-m", "tests.rollout.vllm.family", family]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if family in CANNOT:
        assert CANNOT[family] in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for part in ("with images", "without"):
        assert found["first"][part] < 1e-3
        assert found["moved"][part] < 1e-3
        assert found["old completions under new weights"][part] > 0.05  # had they stayed, it would show
    assert found["first"]["greedy completions that differ"] == found["moved"]["greedy completions that differ"] == 0
