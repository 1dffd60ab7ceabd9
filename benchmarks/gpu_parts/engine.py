"""vLLM in the training process, asleep during optimizer steps, and weights by NCCL."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial

import torch

from gpu_parts.rows import Case, Figures, LackingError, Setting


def run(setting: Setting) -> Iterator[Case]:
    yield "GRPO, vLLM in the process, with sleep", partial(colocate, setting)
    yield "weights by NCCL", partial(nccl, setting)


def colocate(setting: Setting) -> Figures:
    _require(setting)
    from gpu_parts.steps import train  # slow: the trainers

    options = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_enable_sleep_mode": True,
        "vllm_gpu_memory_utilization": 0.2,
    }
    return train(setting, "grpo", **options)


def nccl(setting: Setting) -> Figures:
    _require(setting)
    if torch.cuda.device_count() < 2:
        raise LackingError("NCCL joins a trainer and a server on two cards; this machine has one")
    raise LackingError("start `boresight vllm-serve --nccl` on the other card, and train with --vllm_mode server")


def _require(setting: Setting) -> None:
    if not setting.cuda or importlib.util.find_spec("vllm") is None:
        raise LackingError("needs CUDA and vllm")
