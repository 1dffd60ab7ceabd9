"""Trains a few steps with vLLM and saves the last gradients: by one process, or as torchrun does on two ranks."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import distributed

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.errors import SyncError
from boresight.model.shards import is_sharded, whole
from tests.trainer.conftest import QUIET, Gradients, vowel_share

from .conftest import START_S, children
from .test_faults import before_call

STEPS = 4


def build(model: Path, folder: Path, engine: dict[str, Any], callback: Gradients) -> GRPOTrainer:
    """A trainer. In every second step, two ranks hold one row and two."""
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
    found = {name.removeprefix("module."): whole(value) for name, value in gradients.steps[-1].items()}
    return {"gradients": found, "log": run.state.log_history, "is_sharded": is_sharded(run.model)}  # pyright: ignore[reportArgumentType]


def server(url: str) -> dict[str, Any]:
    return {"vllm_mode": "server", "vllm_server_base_url": url, "vllm_server_timeout": START_S}


def main(model: Path, folder: Path, engine: dict[str, Any], supervisor: int) -> None:
    """Args:
    supervisor: process id of a `vllm-serve` whose vLLM dies under one rank's second request, while the other rank asks as well or
        has been answered; 0: nothing happens.
    """
    gradients = Gradients()
    run = build(model, folder, engine, gradients)
    if PartialState().process_index == 1 and supervisor:
        before_call(run, "/inference/v1/generate", 1, lambda: os.killpg(children(supervisor)[0], signal.SIGKILL))
    run.train()
    if engine.get("vllm_tensor_parallel_size", 1) > 1:
        one_rank_gets_other_weights(run)
    run.sampler.close()  # pyright: ignore[reportAttributeAccessIssue]
    # What training runs over is still there when its engines are gone.
    total = torch.ones(())
    distributed.all_reduce(total)
    assert int(total) == 2
    torch.save(results(run, gradients), folder / f"rank{PartialState().process_index}.pt")


def one_rank_gets_other_weights(run: GRPOTrainer) -> None:
    """Half of a matrix is wrong, on the second rank: both are told."""
    sampler: Any = run.sampler.engine  # pyright: ignore[reportAttributeAccessIssue]
    load = sampler.engine.load

    def tampered(tensors: Any, version: str, **options: Any) -> None:
        wrong = PartialState().process_index == 1
        load(
            lambda: [(name, 1.1 * each if wrong and "layers.0.mlp.down" in name else each) for name, each in tensors()],
            version,
            **options,
        )

    sampler.engine.load = tampered
    with pytest.raises(SyncError, match=r"down_proj\.weight"):
        sampler._push("tampered", everything=True)
    sampler.engine.load = load


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
    PartialState().destroy_process_group()
