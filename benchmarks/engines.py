"""Samples a second by transformers in TRL 1.16, by transformers in boresight, and by vLLM in boresight's process.

    .venv/bin/python benchmarks/engines.py [--json FILE] [--threads N] [--quick]

The same model (256 wide, 6 layers, a tower of 6), images and prompts; n = G = 8 completions of a prompt, none of which can stop early.
Each side has a process of its own and they take turns, run by run. vLLM's caches are emptied before each run, so that it reads every
image and prompt once, as it would in training. TRL has no vLLM on a CPU. Nothing else may run meanwhile. `--quick` is
for tests: one tiny case in one process.
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

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

from cases import SMALL, TINY, Case
from measure import paired_ratio
from rich.console import Console
from rich.table import Table
from worker import start_workers
from workload import build_model

CASES = (
    Case("2 prompts, C=32", "sample", **SMALL, completion_tokens=32, num_completions=8, num_prompts=2),
    Case("2 prompts, C=128", "sample", **SMALL, completion_tokens=128, num_completions=8, num_prompts=2),
    Case("8 prompts, C=128", "sample", **SMALL, completion_tokens=128, num_completions=8, num_prompts=8),
)
QUICK_CASES = (Case("2 prompts, C=4", "sample", **TINY, num_completions=3, num_prompts=2),)
SIDES = {"trl": "TRL, transformers", "ours": "boresight, transformers", "vllm": "boresight, vLLM"}


def measured(case: Case, folder: Path, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every run of every side."""
    started = start_workers(SIDES, folder, scratch, options.threads, apart=not options.quick)
    workers = dict(zip(SIDES, started, strict=True))
    try:
        for worker in workers.values():
            worker.ask("prepare", case)
            worker.ask("seconds")  # the first run warms up
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, worker in workers.items():
                seconds[side].append(worker.ask("seconds"))
    finally:
        for worker in workers.values():
            worker.close()
    return {"case": case.name, "samples": case.num_rows, "seconds": seconds}


def shown(records: list[dict[str, Any]]) -> Table:
    """Medians, and ratios of paired runs with their quartiles."""
    table = Table(title="samples a second, float32")
    for column in ("case", *SIDES.values(), "ours / TRL", "vLLM / TRL", "vLLM / ours"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for record in records:
        seconds = record["seconds"]
        rates = [f"{record['samples'] / statistics.median(seconds[side]):.2f}" for side in SIDES]
        ratios = [paired_ratio(seconds[a], seconds[b]) for a, b in (("trl", "ours"), ("trl", "vllm"), ("ours", "vllm"))]
        table.add_row(
            record["case"], *rates, *(f"{each.median:.2f}× ({each.low:.2f}–{each.high:.2f})" for each in ratios)
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write every run's seconds")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side and case (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one tiny case in one process: shows that all of it runs")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = build_model(Path(scratch) / "model", small=options.quick)
        cases = QUICK_CASES if options.quick else CASES
        records = [measured(case, folder, Path(scratch), options) for case in cases]
    Console(width=160).print(shown(records))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
