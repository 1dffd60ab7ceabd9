"""Tiny models of every family that boresight is tested on, built as the demo's is.

Every family keeps what makes it special (window attention, DeepStack, tiles, sliding layers), and ties its head as its published
checkpoints do.
"""

from __future__ import annotations

from pathlib import Path

from boresight.demo.tiny import build
from boresight.demo.tiny.build import Family
from boresight.demo.tiny.qwen import qwen2_5_vl
from tests.tiny.gemma import gemma3
from tests.tiny.hybrid import lfm2_vl, qwen3_5, qwen3_5_moe
from tests.tiny.idefics import idefics3, smolvlm
from tests.tiny.internvl import internvl
from tests.tiny.llava import llava, llava_next, llava_onevision
from tests.tiny.qwen import qwen2_vl, qwen3_vl

FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "lfm2_vl": lfm2_vl,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "gemma3": gemma3,
}


def build_tiny(family: str, folder: Path | str, *, seed: int = 0, **sizes: int | float | bool | None) -> Path:
    """As `boresight.demo.tiny.build_tiny`, with a name in `FAMILIES`."""
    return build.build_tiny(FAMILIES.get(family, family), folder, seed=seed, **sizes)
