"""Whether sampling and learning at the same time cost as much as the longer of the two (`rollout_lag=1`).

    .venv/bin/python benchmarks/overlap.py [--steps N] [--length C] [--json FILE]

The same run with `rollout_lag` 0 and 1. The trainer has one process with one thread, and the engine another (`second_process`), so two
cores serve. Without lag, a step takes the time to sample and the time of all else. With lag it should take the longer of the two.
`--length` sets how long completions are, and so which of the two is the longer: choose it so that both take about as long, since the
gain is largest there. `--quick` is for tests: a small model, and few steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}

import torch
from rich.console import Console
from rich.table import Table
from second_process import SecondProcess
from step_clock import WARM_UP, StepClock
from workload import build_model

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.trainer.rollouts import engines


def vowels(completions: list[Any], **columns: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in completion[0]["content"]) / 10 for completion in completions]


def measured(model: Path, folder: Path, lag: int, effort: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of a step, and of sampling in the second process."""
    config = GRPOConfig(
        output_dir=str(folder / f"lag{lag}"),
        use_vllm=True,
        vllm_mode="server",
        rollout_lag=lag,
        max_steps=effort.steps + WARM_UP,
        num_prompts_per_step=effort.prompts,
        per_device_train_batch_size=effort.prompts * 8,
        num_generations=8,
        max_completion_length=effort.length,
        learning_rate=1e-6,
        gradient_checkpointing=False,
        gold_check="off",
        preflight="off",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    clock = StepClock()
    with patch.dict(engines.ENGINES, {"use_vllm": SecondProcess}):
        trainer = GRPOTrainer(str(model), vowels, config, load_easy_vqa("train", num_rows=64), callbacks=[clock])
    engine: Any = trainer.sampler.engine  # pyright: ignore[reportAttributeAccessIssue]
    try:
        trainer.train()
    finally:
        trainer.sampler.close()
    return {
        "lag": lag,
        "step": statistics.median(wall for wall, _ in clock.seconds),
        "sample": statistics.median(engine.seconds[WARM_UP:]),
        "reward": trainer.state.log_history[-2].get("reward"),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="Counted steps of a run.")
    parser.add_argument("--length", type=int, default=48, help="Tokens of the longest completion.")
    parser.add_argument("--prompts", type=int, default=4, help="Prompts of a step, with 8 completions each.")
    parser.add_argument("--rounds", type=int, default=1, help="Runs of each kind, taking turns.")
    parser.add_argument("--json", type=Path, help="A file for the figures.")
    parser.add_argument("--quick", action="store_true", help="For tests: a small model and few steps.")
    effort = parser.parse_args(arguments)
    if effort.quick:
        effort.steps, effort.length, effort.prompts = 3, 8, 2
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / "model", small=effort.quick)
        for number in range(effort.rounds):
            plain, lagged = (measured(model, Path(folder) / str(number), lag, effort) for lag in (0, 1))
            sample, update = plain["sample"], plain["step"] - plain["sample"]
            rounds.append(
                {
                    "sample": sample,
                    "update": update,
                    "lag 0": plain["step"],
                    "lag 1": lagged["step"],
                    "over": lagged["step"] / max(sample, update),
                    "load": load,
                }
            )
    show(rounds)
    if effort.json:
        effort.json.write_text(json.dumps(rounds, indent=1))
    return rounds


def show(rounds: Sequence[dict[str, float]]) -> None:
    table = Table(title=f"Seconds per step (load before the runs: {rounds[0]['load']:.1f})")
    for name in ("sample", "update", "lag 0", "lag 1", "lag 1 / max(sample, update)"):
        table.add_column(name, justify="right")
    for each in rounds:
        table.add_row(*(f"{each[name]:.3f}" for name in ("sample", "update", "lag 0", "lag 1")), f"{each['over']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
