"""GRPO, DAPO, SAPO, RLOO and GSPO on real images, from one checkpoint, on the same prompts, at equal compute.

    .venv/bin/python benchmarks/objectives.py [--seeds 0 1 2] [--methods grpo gspo …] [--steps N] [--json FILE] [--plot FILE.svg]
    .venv/bin/python benchmarks/objectives.py --from docs/assets/objectives.json [--plot FILE.svg]

For each seed, SFT as in the main job makes a model that knows how to answer and guesses colours. Each method starts from that very
checkpoint. Optimizer step t learns, in every method, from the same prompts, from equally many completions of each, at the same learning
rate; what differs is the objective, and that GSPO learns in four steps from what it sampled before the first of them. What went
through the model is counted by hooks on transformers' own modules. Held-out questions are answered greedily every so many steps; that
work is not counted. `--quick` is for tests: a few tiny steps, to see that all of it runs.

Every finished run is a file of its own in the output folder, so a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}

import torch
from contest import METHODS, RECIPE, Effort, Run, check_effort, finished
from curves import draw, print_tables, write_tables
from datasets import Dataset
from learning import QUIET, greedy_accuracy, hide_progress_bars, start_of
from measure import counted_work
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from boresight import GRPOConfig, GRPOTrainer
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.subjects import OTHER_SHARE, with_mostly_colors
from boresight.report.completions import read_completions
from boresight.rewards import answer_format_reward, exact_answer_reward


def run_method(method: str, seed: int, start: Path, settings: Mapping[str, Any], effort: Effort, test: Dataset) -> Run:
    """One method from a seed's checkpoint."""
    run = Run(seed=seed, method=method, settings=json.loads(json.dumps(settings)))
    rows = with_mostly_colors(load_easy_vqa("train", seed=seed, num_rows=effort.num_rows), OTHER_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            str(start), [answer_format_reward, exact_answer_reward], _config(folder, method, seed, effort), rows
        )
        models = [each.model for each in (trainer.policy, trainer.reference and trainer.reference.forward) if each]
        with counted_work(models) as counts:
            questions = HeldOut(trainer, test, run, effort, counts)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(questions)
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.train()
            run.wall_s = time.perf_counter() - wall - questions.wall_s
            run.cpu_s = time.process_time() - cpu - questions.cpu_s
        run.work = dict(counts) | {"completions": read_completions(folder, phase="train").num_rows}
    for entry in trainer.state.log_history:
        if "reward" in entry:
            run.logs[str(entry["step"])] = {name: value for name, value in entry.items() if name in LOGGED}
    return run


LOGGED = (
    "reward",
    "entropy",
    "kl",
    "grad_norm",
    "frac_reward_zero_std",
    "clip_ratio/region_mean",
    "completions/clipped_ratio",
    "work/sampler_completion_tokens",
    "work/completion_tokens",
)
"""What is kept of the trainer's own log."""


class HeldOut(TrainerCallback):
    """Asks the held-out questions at the start and every so many steps, and keeps that work apart from training's."""

    def __init__(self, trainer: GRPOTrainer, test: Dataset, run: Run, effort: Effort, counts: Counter[str]) -> None:
        self.trainer, self.test, self.run, self.effort, self.counts = trainer, test, run, effort, counts
        self.sampler = trainer.own_sampler()
        self.wall_s = self.cpu_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ask(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.effort.ask_every == 0:
            self._ask(state.global_step)

    def _ask(self, step: int) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        with _set_aside(self.counts), _set_aside(self.trainer.policy.counts):
            result = greedy_accuracy(self.trainer, self.sampler, self.test)
        self.run.tokens[str(step)] = self.counts["tokens"]
        self.run.right[str(step)], self.run.asked = dict(result.right), dict(result.asked)
        self.wall_s += time.perf_counter() - wall
        self.cpu_s += time.process_time() - cpu


@contextmanager
def _set_aside(counts: Counter[str]) -> Iterator[None]:
    """Forget what is counted inside."""
    before = counts.copy()
    yield
    counts.clear()
    counts.update(before)


def _config(folder: str, method: str, seed: int, effort: Effort) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        max_steps=effort.steps,
        num_prompts_per_step=effort.prompts,
        per_device_train_batch_size=effort.prompts * effort.num_generations,
        num_generations=effort.num_generations,
        max_completion_length=RECIPE.max_completion_length,
        learning_rate=effort.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        logging_steps=effort.ask_every,
        gold_check="off",
        seed=seed,
        **QUIET,
        **METHODS[method].options,
    )


def run_all(options: argparse.Namespace, effort: Effort, console: Console) -> list[Run]:
    """Every method of every seed, those left out that are there already."""
    test = load_easy_vqa("test", num_rows=effort.num_test)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    runs, begun = [], time.perf_counter()
    for seed in options.seeds:
        for method in options.methods:
            file = options.output_dir / f"{method}_{seed}.json"
            settings = asdict(effort) | {"options": METHODS[method].options}
            run = finished(file, settings)
            if run is None and time.perf_counter() - begun > 60 * options.minutes:
                console.print(f"{method}, seed {seed}: not started, {options.minutes:g} minutes are over.")
                continue
            if run is None:
                run = run_method(method, seed, start_of(seed, options.output_dir, effort), settings, effort, test)
                file.write_text(json.dumps(asdict(run), indent=1) + "\n")
            console.print(
                f"{method}, seed {seed}: {run.accuracy(0):.1%} → {run.accuracy(effort.steps):.1%}, "
                f"{run.cpu_s:.0f} s of one core ({run.wall_s:.0f} s by the clock)",
            )
            runs.append(run)
    return runs


QUICK = Effort(steps=4, ask_every=4, num_test=24, prompts=2, num_generations=2, sft_steps=2, num_rows=160)


def main(argv: Sequence[str] | None = None) -> None:
    effort = Effort()
    parser = argparse.ArgumentParser(description="Five objectives from one checkpoint at equal compute.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--steps", type=int, default=effort.steps, help="optimizer steps of each method (%(default)s)")
    parser.add_argument(
        "--ask-every", type=int, default=effort.ask_every, help="steps between evaluations (%(default)s)"
    )
    parser.add_argument("--num-test", type=int, default=effort.num_test, help="held-out questions (%(default)s)")
    parser.add_argument("--sft-steps", type=int, default=effort.sft_steps, help="of the start (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=effort.learning_rate, help="of all (%(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after this long")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/objectives"), help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few tiny steps of one seed: shows that all of it runs")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show what an earlier --json holds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables into a Markdown page")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw held-out accuracy over steps, as SVG")
    options = parser.parse_args(argv)
    console = Console(width=140)
    if options.source:
        runs = [Run(**record) for record in json.loads(options.source.read_text())]
    else:
        torch.set_num_threads(1)
        hide_progress_bars()
        effort = Effort(
            steps=options.steps,
            ask_every=options.ask_every,
            num_test=options.num_test,
            sft_steps=options.sft_steps,
            learning_rate=options.learning_rate,
        )
        if options.quick:
            effort, options.seeds, options.output_dir = QUICK, options.seeds[:1], options.output_dir / "quick"
        try:
            rows = with_mostly_colors(load_easy_vqa("train", num_rows=effort.num_rows), OTHER_SHARE)
            check_effort(effort, options.methods, len(rows))
            runs = run_all(options, effort, console)
        except ValueError as error:
            parser.error(str(error))
    print_tables(runs, console)
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if options.page:
        write_tables(runs, options.page)
    if options.plot:
        draw(runs, options.plot)


if __name__ == "__main__":
    main()
