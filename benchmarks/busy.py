"""How much longer a GRPO step takes while another process computes on one of the cores.

    .venv/bin/python benchmarks/busy.py [--engines transformers vllm] [--steps N] [--json FILE]

Each run is a process of its own with the threads that it takes by default: first on an idle machine, then beside a process that never
waits. With N cores, a fair share for a step of N threads would be N - 1/2 of them. `--quick` is for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

from rich.console import Console
from rich.table import Table

VLLM = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.1}
ENGINES: dict[str, dict[str, Any]] = {"transformers": {}, "vllm": VLLM}


def trained(engine: str, folder: Path, steps: int, prompts: int) -> None:
    """Train the demo's model by GRPO in this process, and write the seconds of each counted step."""
    # boresight before torch, which reads how threads wait when it is imported.
    from boresight import GRPOConfig, GRPOTrainer  # isort: skip
    from step_clock import WARM_UP, StepClock

    from boresight.demo.easy_vqa import load_easy_vqa
    from boresight.demo.subjects import Recipe
    from boresight.demo.tiny import build_tiny
    from boresight.rewards import answer_format_reward, exact_answer_reward

    model = build_tiny("qwen2_5_vl", folder / "model", **Recipe().sizes)
    config = GRPOConfig(
        output_dir=str(folder / "run"),
        max_steps=steps + WARM_UP,
        num_prompts_per_step=prompts,
        per_device_train_batch_size=prompts * 8,
        num_generations=8,
        max_completion_length=16,
        gradient_checkpointing=False,
        gold_check="off",
        preflight="off",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **ENGINES[engine],
    )
    clock = StepClock()
    rewards = [answer_format_reward, exact_answer_reward]
    trainer = GRPOTrainer(str(model), rewards, config, load_easy_vqa("train", num_rows=640), callbacks=[clock])
    try:
        trainer.train()
    finally:
        if config.use_vllm:
            trainer.sampler.close()  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "seconds.json").write_text(json.dumps([wall for wall, _ in clock.seconds]))


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that never waits."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


def seconds_of(engine: str, effort: argparse.Namespace) -> float:
    """The median seconds of a step, of a run in another process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--engines", engine]
        command += ["--steps", str(effort.steps), "--prompts", str(effort.prompts)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        if done.returncode:
            raise RuntimeError(f"{engine} failed:\n{done.stderr[-3000:]}")
        return statistics.median(json.loads((Path(folder) / "seconds.json").read_text()))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--steps", type=int, default=15, help="Counted steps of a run.")
    parser.add_argument("--prompts", type=int, default=32, help="Prompts of a step, with 8 completions each.")
    parser.add_argument("--rounds", type=int, default=1, help="Runs of each kind, taking turns.")
    parser.add_argument("--json", type=Path, help="A file for the figures.")
    parser.add_argument("--quick", action="store_true", help="For tests: few steps, transformers alone.")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    effort = parser.parse_args(arguments)
    if effort.child:
        trained(effort.engines[0], effort.child, effort.steps, effort.prompts)
        return []
    if effort.quick:
        effort.steps, effort.prompts, effort.engines = 2, 2, ["transformers"]
    load = os.getloadavg()[0]
    found = []
    for _ in range(effort.rounds):
        for engine in effort.engines:
            idle = seconds_of(engine, effort)
            with busy_core():
                busy = seconds_of(engine, effort)
            found.append({"engine": engine, "idle": idle, "busy": busy, "ratio": busy / idle, "load": load})
    show(found)
    if effort.json:
        effort.json.write_text(json.dumps(found, indent=1))
    return found


def show(found: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"Seconds of a GRPO step (load before the runs: {found[0]['load']:.1f})")
    for name in ("engine", "idle", "one core busy", "busy / idle"):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(each["engine"], f"{each['idle']:.3f}", f"{each['busy']:.3f}", f"{each['ratio']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
