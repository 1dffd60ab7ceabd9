"""`boresight demo`: a complete training job on real images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from boresight.demo.job import Summary

HELP = "teach a small Qwen2.5-VL by SFT, improve it by GRPO on real images, and show the accuracy"

STAGES = {"blind": "blind guesser", "start": "at the start", "sft": "after SFT", "final": "after {method}"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The run folder, the time limit and the method."""
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/demo"), help="the run folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        choices=("easy_vqa", "digits"),
        default="easy_vqa",
        help="questions about coloured shapes, or handwritten digits (pip install 'boresight[digits]'; default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, rows and samples (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="stop training after this many minutes (default: %(default)s)"
    )
    parser.add_argument(
        "--method", choices=("grpo", "gspo"), default="grpo", help="the method after SFT (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Run the job and print the model's accuracy at each stage."""
    from rich.console import Console

    from boresight.demo.job import run_demo

    summary = run_demo(
        options.output_dir, data=options.data, seed=options.seed, minutes=options.minutes, method=options.method
    )
    console = Console()
    console.print(accuracy_table(summary))
    phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in summary.seconds.items())
    console.print(f"time: {phases}")
    console.print(
        f"run folder: {summary.folder} (summary.json, completions, images, the model at each stage)", soft_wrap=True
    )


def accuracy_table(summary: Summary) -> Table:
    """Accuracy on held-out questions, by stage and kind."""
    from rich import box
    from rich.table import Table

    asked = summary.counts["test_questions"]
    table = Table(
        title=f"{summary.data}, {asked:,} held-out questions (seed {summary.seed})", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("model", no_wrap=True)
    table.add_column(f"right\nof {asked}", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right", no_wrap=True)
    kinds = summary.by_kind if len(summary.by_kind) > 1 else {}
    for kind in kinds:
        table.add_column(f"{kind}\nof {summary.counts[f'test_questions/{kind}']}", justify="right")
    for stage, meaning in STAGES.items():
        share = summary.accuracy[stage]
        low, high = summary.interval.get(stage, (None, None))
        table.add_row(
            meaning.format(method=summary.method.upper()),
            f"{share * asked:.0f}",
            f"{share:.1%}",
            "" if low is None or high is None else f"{low:.1%}–{high:.1%}",
            *(f"{shares[stage]:.0%}" for shares in kinds.values()),
            style="bold" if stage == "final" else None,
        )
    return table
