"""Trains a few steps with vLLM and saves the last gradients: by one process, or by torchrun on two ranks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from tests.trainer.conftest import QUIET, Gradients, vowel_share

from .conftest import START_S, children
from .test_faults import before_call

STEPS = 4


def build(model: Path, folder: Path, url: str | None, callback: Gradients) -> GRPOTrainer:
    """A trainer over the server at `url`, else over an engine in each process. In every second step, two ranks hold one row and two."""
    engine: dict[str, Any] = {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}
    if url is not None:
        engine = {"vllm_mode": "server", "vllm_server_base_url": url, "vllm_server_timeout": START_S}
    args = GRPOConfig(
        **{**QUIET, "gold_check": "off"},
        **engine,
        output_dir=str(folder),
        use_vllm=True,
        use_cpu=True,
        num_prompts_per_step=6,
        num_generations=4,
        max_completion_length=8,
        max_steps=STEPS,
    )
    rows = load_easy_vqa("train", num_rows=9, seed=3)
    return GRPOTrainer(str(model), vowel_share, args, rows, callbacks=[callback])  # pyright: ignore[reportArgumentType]


def results(run: GRPOTrainer, gradients: Gradients) -> dict[str, Any]:
    found = {name.removeprefix("module."): value for name, value in gradients.steps[-1].items()}
    return {"gradients": found, "log": run.state.log_history}


def main(model: Path, folder: Path, url: str | None, supervisor: int) -> None:
    gradients = Gradients()
    run = build(model, folder, url, gradients)
    if PartialState().process_index == 1 and supervisor:
        # vLLM dies under one rank's second request, while the other rank asks as well or has been answered.
        before_call(run, "/inference/v1/generate", 1, lambda: os.killpg(children(supervisor)[0], signal.SIGKILL))
    run.train()
    run.sampler.close()  # pyright: ignore[reportAttributeAccessIssue]
    # What training runs over is still there when its engines are gone.
    total = torch.ones(())
    distributed.all_reduce(total)
    assert int(total) == 2
    torch.save(results(run, gradients), folder / f"rank{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] or None, int(sys.argv[4]))
