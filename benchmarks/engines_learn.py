"""Whether GRPO learns the same whichever engine samples: transformers, vLLM in the process, a vLLM server.

    .venv/bin/python benchmarks/engines_learn.py [--engines transformers colocate server] [--steps N] [--json FILE]

The main job's GRPO stage from one checkpoint, with the same prompts and settings; held-out questions are answered greedily by
transformers before and after. Completions differ from engine to engine, as their random numbers do, so accuracies may differ by chance:
`--seeds` tells how much.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import time
from pathlib import Path
from typing import Any

from objectives import QUIET, RECIPE, Effort, greedy_accuracy, start_of  # first: it sets the environment
from rich.console import Console
from rich.table import Table

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.job import with_mostly_colors
from boresight.rewards import answer_format_reward, exact_answer_reward
from boresight.rollout.vllm.serve import Server, server_command

ENGINES = ("transformers", "colocate", "server")


def learn(engine: str, seed: int, start: Path, folder: Path, steps: int, num_test: int) -> dict[str, Any]:
    """One run, in this process."""
    options: dict[str, Any] = {}
    server = None
    if engine != "transformers":
        options |= {"use_vllm": True, "vllm_mode": engine}
    if engine == "colocate":
        options |= {"vllm_gpu_memory_utilization": 0.1}
    if engine == "server":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flags = [
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--dtype",
            "float32",
            "--enforce-eager",
            "--max-model-len",
            "256",
        ]
        server = Server(
            server_command(str(start), [*flags, "--gpu-memory-utilization", "0.1"]), log=folder / "vllm.log"
        )
        options |= {"vllm_server_port": port, "vllm_server_timeout": 900.0}
    try:
        config = GRPOConfig(
            output_dir=str(folder / f"{engine}_{seed}"),
            max_steps=steps,
            num_prompts_per_step=RECIPE.grpo_prompts,
            per_device_train_batch_size=RECIPE.grpo_prompts * RECIPE.num_generations,
            num_generations=RECIPE.num_generations,
            max_completion_length=RECIPE.max_completion_length,
            learning_rate=RECIPE.grpo_learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            logging_steps=10,
            gold_check="off",
            seed=seed,
            **QUIET,
            **options,
        )
        rows = with_mostly_colors(load_easy_vqa("train", seed=seed), RECIPE.other_share)
        trainer = GRPOTrainer(str(start), [answer_format_reward, exact_answer_reward], config, rows)
        test = load_easy_vqa("test", num_rows=num_test)
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
        if server is not None:
            server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--num-test", type=int, default=480)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/engines"))
    parser.add_argument("--start", type=Path, help="the checkpoint to start from; none: one is made for each seed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in options.seeds:
        start = options.start or start_of(seed, options.output_dir, Effort())
        for engine in options.engines:
            # A process each: one that has loaded vLLM is another one than before.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                records.append(
                    pool.apply(learn, (engine, seed, start, options.output_dir, options.steps, options.num_test))
                )
            print(json.dumps(records[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(records, indent=1) + "\n")
    table = Table(title=f"GRPO on easy-VQA, {options.steps} steps, {options.num_test} held-out questions")
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
