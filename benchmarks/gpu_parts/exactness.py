"""Shared rows on this device against plain transformers, one row per completion, in float32 on the CPU: the exactness suite's oracle."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.model.forward import GroupForward
from boresight.model.load import model_facts
from boresight.types import Group
from gpu_parts.rows import BoundError, Case, Figures, LackingError, Setting

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen2_vl", "smolvlm", "llava_onevision", "internvl", "gemma3", "qwen3_5")
BOUND = 2e-4
"""Of log-probabilities in float32, in nats, and of gradients relative to their norm. CUDA's float32 products sum in another order."""


def run(setting: Setting) -> Iterator[Case]:
    for family in FAMILIES[: None if setting.cuda else 1]:
        yield family, partial(compare, setting, family)


def compare(setting: Setting, family: str) -> Figures:
    """Two groups of uneven completions, the first with two images: float32 within `BOUND`, bfloat16 at most twice as far off as rows."""
    try:
        from tests.model.conftest import Subject  # needs pytest
        from tests.model.oracle import oracle, worst_gradient, worst_logp
        from tests.tiny import build_tiny
    except ModuleNotFoundError as missing:
        raise LackingError(f"{missing.name} is not installed; `make gpu-wheels` gathers it") from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_tiny(family, Path(scratch), vocab_size=512)
        processor = AutoProcessor.from_pretrained(folder)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()
        facts = model_facts(model, processor)
        it = Subject(family, folder, processor, facts, Encoder(processor, facts=facts))
        groups = [it.group(it.prompt(2), (6, 1, 9, 4)), it.group(it.prompt(1, seed=1), (3, 7), seed=1)]
        expected = oracle(it, copy.deepcopy(model), groups)
    figures: Figures = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in ("shared", "rows"):
            moved = copy.deepcopy(model).to(setting.device, dtype)
            found = on_device(GroupForward(moved, facts, layout=layout), groups)
            name = f"{layout}, {dtype}".replace("torch.", "")
            figures[f"{name}: nats"] = worst_logp(found, expected)
            if dtype == torch.float32:
                figures[f"{name}: gradients"] = worst_gradient(found, expected)
    value = {name: float(figure or 0) for name, figure in figures.items()}
    if max(value["shared, float32: nats"], value["shared, float32: gradients"]) > BOUND:
        raise BoundError(f"float32 is off by more than {BOUND}", figures)
    if value["shared, bfloat16: nats"] > 2 * value["rows, bfloat16: nats"]:
        raise BoundError("in bfloat16 shared rows are further off than rows", figures)
    return figures


def on_device(forward: GroupForward, groups: list[Group]) -> Any:
    """As `tests.model.oracle.ours`, with the results on the CPU in float32."""
    from tests.model.oracle import gradients, weights_of

    logp = forward(groups).logp
    weights = weights_of(groups)
    (logp * nn.utils.rnn.pad_sequence(weights, True).to(logp.device)).sum().backward()
    rows = [row[: len(weight)].detach().float().cpu() for row, weight in zip(logp, weights, strict=True)]
    return rows, {name: value.float().cpu() for name, value in gradients(forward.outer).items()}
