"""FSDP2 on one rank, as accelerate sets it up: parameters are DTensors and hooks gather them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial

from gpu_parts.rows import Case, Figures, LackingError, Setting


def run(setting: Setting) -> Iterator[Case]:
    for method in ("sft", "grpo"):
        yield f"three steps of {method.upper()}", partial(steps, setting, method)


def steps(setting: Setting, method: str) -> Figures:
    if not setting.cuda:
        raise LackingError("needs CUDA (NCCL)")
    from gpu_parts.steps import train  # slow: the trainers

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one_rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    # Processes of one group meet once: the second method finds the group that the first has made.
    os.environ.update(one_rank | {"MASTER_PORT": os.environ.get("MASTER_PORT", str(port))})
    options = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2}}
    return train(setting, method, **options)
