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
    "qwen3_5_moe": "CPU GDN attention requires BF16",
}
"""Families whose tiny model vLLM cannot run, and what it says."""

BOUND = {
    # vLLM's kernel for experts on a CPU rounds otherwise.
    "qwen3_vl_moe": 0.02,
}
"""In nats; 1e-3 for the others."""

COMPUTES_OTHERWISE = {"lfm2_vl"}
"""Families whose weights arrive (all are compared), and whose log-probabilities vLLM 0.32 computes otherwise on a CPU, text alone included:
0.4 to 0.9 nats."""


@pytest.mark.soak
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_vl_moe"])
def test_a_family_answers_as_the_trainer_does(family: str) -> None:
    command = [sys.executable, "-m", "tests.rollout.vllm.family", family]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if family in CANNOT:
        assert CANNOT[family] in done.stderr
        return
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    if family in COMPUTES_OTHERWISE:
        assert found["first"]["without"] > 0.1
        return
    bound = BOUND.get(family, 1e-3)
    for part in ("with images", "without"):
        assert found["first"][part] < bound
        assert found["moved"][part] < bound
        assert found["old completions under new weights"][part] > 0.05  # had they stayed, it would show
    if bound > 1e-3:
        return  # the two likeliest tokens may be nearer than that
    assert found["first"]["greedy completions that differ"] == found["moved"]["greedy completions that differ"] == 0
