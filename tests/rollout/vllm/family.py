"""One family through an engine in this process: `python -m tests.rollout.vllm.family NAME` prints what it found as JSON.

A process of its own, since one holds one engine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boresight.rollout.vllm.local import LocalEngine
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.sampling import SamplingSettings
from boresight.types import Group

from .conftest import ENGINE, IMAGES, Rig, build_rig
from .test_contract import LENGTH, furthest, greedy_by_hand, ids_of
from .test_sync import move

# Families that cut an image into tiles have long prompts.
MAX_MODEL_LEN = 1024

STATEFUL = ("qwen3_5", "qwen3_5_moe", "lfm2_vl")
NEEDS: dict[str, dict[str, Any]] = {family: {"enable_prefix_caching": False} for family in STATEFUL}
"""What vLLM wants of an engine for a family on a CPU."""
ONE_IMAGE = ("llava_onevision",)
"""Families whose prompts with several images vLLM expands otherwise than transformers, which our sampler refuses."""


def gaps(rig: Rig, groups: Sequence[Group]) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's, in nats, with images and without."""
    parts = {
        "with images": [group for group in groups if group.prompt.images],
        "without": [group for group in groups if not group.prompt.images],
    }
    return {name: furthest(rig, part) for name, part in parts.items()}


def compared(rig: Rig, sampler: VLLMSampler) -> dict[str, float]:
    """Greedy and sampled completions, the largest distance of both."""
    greedy = sampler.sample(rig.prompts, SamplingSettings(1, LENGTH, temperature=0.0))
    by_hand = [greedy_by_hand(rig, place) for place in range(len(rig.prompts))]
    sampled = sampler.sample(rig.prompts, SamplingSettings(4, LENGTH, seed=5))
    both = [gaps(rig, greedy), gaps(rig, sampled)]
    found = {name: max(each[name] for each in both) for name in both[0]}
    return found | {"greedy completions that differ": sum(a != b for a, b in zip(ids_of(greedy), by_hand, strict=True))}


def run(family: str) -> dict[str, dict[str, float]]:
    """Distances after the first sync, and after one that follows steps on every weight with the caches hot."""
    rig = build_rig(family, Path(tempfile.mkdtemp()) / family)
    if family in ONE_IMAGE:
        rig.prompts = tuple(prompt for prompt in rig.prompts if len(prompt.images) < 2)
    options = ENGINE | {"max_model_len": MAX_MODEL_LEN} | NEEDS.get(family, {})
    engine = LocalEngine(rig.save, limit_mm_per_prompt=IMAGES, **options)
    sampler = rig.sampler(engine)
    found = {"first": compared(rig, sampler)}
    before = sampler.sample(rig.prompts, SamplingSettings(4, LENGTH, seed=6))
    move(rig)
    found["old completions under new weights"] = gaps(rig, before)
    sampler.outdate()
    sampler.sync(1)
    return found | {"moved": compared(rig, sampler)}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
