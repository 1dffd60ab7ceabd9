"""The parts of `gpu_check.py`, in their order. Each is a file with a function `run(setting)` that yields rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """One question, and how long its answer may take."""

    name: str
    seconds: int
    """Limit of its process on a CUDA machine, start included. All together stay under eight minutes."""
    about: str

    def load(self) -> Callable[[Any], Iterator[Any]]:
        return importlib.import_module(f"gpu_parts.{self.name}").run


PARTS = (
    Part("first", 60, "versions, the card's matrix products, merged attention: exactness, time, memory"),
    Part("exactness", 80, "eight families, shared rows against plain transformers"),
    Part("update", 110, "forward and backward of 3B and 4B models, random weights: time, memory, FLOP utilisation"),
    Part("trl", 60, "the same update by TRL, on the same card"),
    Part("head", 25, "the language-model head in chunks, against all logits at once"),
    Part("steps", 50, "three steps each of SFT, DPO, GRPO, LoRA, 4-bit"),
    Part("fsdp", 30, "FSDP2 on one rank"),
    Part("engine", 45, "vLLM in the process, with sleep; weights by NCCL"),
)
