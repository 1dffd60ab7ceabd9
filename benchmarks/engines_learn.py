"""Whether GRPO learns the same whichever engine samples: transformers, vLLM in the process, a vLLM server, a server one rollout ahead.

    .venv/bin/python benchmarks/engines_learn.py [--engines transformers colocate server lag] [--steps N] [--json FILE]

The main job's GRPO stage from one checkpoint, with the same prompts and settings; held-out questions are answered greedily by
transformers before and after. Completions differ from engine to engine, as their random numbers do, so accuracies may differ by chance:
`--seeds` tells how much. `--quick` is for tests: two tiny steps, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}

from contest import RECIPE, Effort
from learning import QUIET, greedy_accuracy, hide_progress_bars, start_of
from rich.console import Console
from rich.table import Table

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.subjects import OTHER_SHARE, with_mostly_colors
from boresight.rewards import answer_format_reward, exact_answer_reward
from boresight.rollout.vllm.serve import Server, server_command

ENGINES = ("transformers", "colocate", "server")
LAG = "lag"
"""A server that samples the next rollout while optimizer steps learn from this one (`rollout_lag=1`)."""


QUICK = Effort(steps=2, num_test=24, prompts=2, num_generations=2, sft_steps=2, num_rows=160)


def learn(engine: str, seed: int, start: Path, folder: Path, effort: Effort) -> dict[str, Any]:
    """One run, in this process."""
    options: dict[str, Any] = {}
    server = None
    if engine != "transformers":
        options |= {"use_vllm": True, "vllm_mode": "colocate" if engine == "colocate" else "server"}
    if engine == "colocate":
        options |= {"vllm_gpu_memory_utilization": 0.1}
    if engine == LAG:
        options |= {"rollout_lag": 1}
    if engine in ("server", LAG):
        server, port = start_server(start, folder / "vllm.log")
        options |= {"vllm_server_port": port, "vllm_server_timeout": 900.0}
    trainer = None
    try:
        config = GRPOConfig(
            output_dir=str(folder / f"{engine}_{seed}"),
            max_steps=effort.steps,
            num_prompts_per_step=effort.prompts,
            per_device_train_batch_size=effort.prompts * effort.num_generations,
            num_generations=effort.num_generations,
            max_completion_length=RECIPE.max_completion_length,
            learning_rate=effort.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            logging_steps=min(10, effort.steps),
            gold_check="off",
            seed=seed,
            **QUIET,
            **options,
        )
        rows = with_mostly_colors(load_easy_vqa("train", seed=seed, num_rows=effort.num_rows), OTHER_SHARE)
        trainer = GRPOTrainer(str(start), [answer_format_reward, exact_answer_reward], config, rows)
        test = load_easy_vqa("test", num_rows=effort.num_test)
        before = greedy_accuracy(trainer, trainer.own_sampler(), test)
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        after = greedy_accuracy(trainer, trainer.own_sampler(), test)
        logs = [entry for entry in trainer.state.log_history if "reward" in entry]
        return {
            "engine": engine,
            "seed": seed,
            "before": before.share,
            "after": after.share,
            "interval": after.interval,
            "color": after.by_kind["color"],
            "rewards": [entry["rewards/exact_answer_reward/mean"] for entry in logs],
            "drift_max": max(entry["sampling/sampling_logp_difference/max"] for entry in logs),
            "seconds": seconds,
        }
    finally:
        if trainer is not None and engine != "transformers":
            trainer.sampler.close()  # pyright: ignore[reportAttributeAccessIssue]
        if server is not None:
            server.close()


def start_server(model: Path, log: Path) -> tuple[Server, int]:
    """vLLM with a model behind a free port of this machine, and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    flags += ["--max-model-len", "256", "--gpu-memory-utilization", "0.1"]
    return Server(server_command(str(model), flags), log=log), port


def learned(engine: str, apart: bool, *args: Any) -> dict[str, Any]:
    """As `learn`; `apart` in a process of its own, because one that has loaded vLLM is another one than before."""
    if not apart:
        return learn(engine, *args)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(learn, (engine, *args))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=(*ENGINES, LAG), default=ENGINES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num-test", type=int, default=480)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/engines"))
    parser.add_argument("--start", type=Path, help="the checkpoint to start from; none: one is made for each seed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two tiny steps in one process: shows that all of it runs")
    options = parser.parse_args(argv)
    hide_progress_bars()
    effort = QUICK if options.quick else Effort(steps=options.steps, num_test=options.num_test)
    folder = options.output_dir / "quick" if options.quick else options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in options.seeds:
        start = options.start or start_of(seed, folder, effort)
        for engine in options.engines:
            records.append(learned(engine, not options.quick, seed, start, folder, effort))
            print(json.dumps(records[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(records, indent=1) + "\n")
    table = Table(title=f"GRPO on easy-VQA, {effort.steps} steps, {effort.num_test} held-out questions")
    for column in ("sampler", "seed", "before", "after", "95 %", "colour", "max drift", "seconds"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for record in records:
        low, high = record["interval"]
        table.add_row(
            record["engine"],
            str(record["seed"]),
            f"{record['before']:.1%}",
            f"{record['after']:.1%}",
            f"{low:.1%}–{high:.1%}",
            f"{record['color']:.0%}",
            f"{record['drift_max']:.1e}",
            f"{record['seconds']:.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
