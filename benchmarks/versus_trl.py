"""boresight beside TRL 1.16: the same model, images, completions and settings, run by run in turn.

    .venv/bin/python benchmarks/versus_trl.py [--short] [--json FILE] [--only NAME …] [--threads N]

Each side lives in a process of its own and is asked for one run at a time, TRL, boresight, TRL, boresight, …; the speed-up
is the median of the paired ratios, its spread their quartiles. Both are float32, with the same completions (their
log-probabilities are compared first), the same micro-batches and the same number of threads. `ideal.py` says what the bound
is made of, `measure.py` how memory and work are counted. Nothing else may run meanwhile. `--quick` is for
tests: it runs every kind of case once, tiny, to see that both sides still do the same work.

One thread is the default: a second one helps many rows of equal work more than it helps little work, so with two the speed-up falls
towards what thread pools cost, bound included (sampling C=32: 5.0× of 5.2× with one, 4.3× of 4.6× with two).

On a CPU, TRL's head runs over every position, prompts included (on CUDA over completions alone): 1–3 % of its time here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

from cases import CASES, QUICK_CASES, Case
from ideal import ideal_seconds
from measure import paired_ratio
from rich.console import Console
from rich.table import Table
from worker import Worker, start_workers
from workload import build_model


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a case is measured."""

    min_pairs: int
    max_pairs: int
    seconds: float
    """Start no further pair after this long."""
    repeats: int
    """Of each unit cost."""


QUICK = Effort(min_pairs=1, max_pairs=1, seconds=0, repeats=1)
SHORT = Effort(min_pairs=2, max_pairs=5, seconds=6, repeats=3)
FULL = Effort(min_pairs=3, max_pairs=9, seconds=25, repeats=3)

COLUMNS = (
    "case",
    *"PCK",
    "TRL s",
    "ours s",
    "speed-up",
    "quartiles",
    "goal",
    "ideal",
    "of it",
    "memory",
    "encodes",
    "tokens",
)

MAX_LOGP_DIFFERENCE = 1e-4
"""Between the two sides' log-probabilities of the same completions, in nats, float32: beyond it they do not do the same work."""


def measured(case: Case, theirs: Worker, ours: Worker, effort: Effort) -> dict[str, Any]:
    """The record of one case."""
    sides = ("trl", "boresight")
    for worker in (theirs, ours):
        worker.ask("prepare", case)
    difference = logp_difference(theirs.ask("logp"), ours.ask("logp"))
    # Also the warm-up.
    accounts = [worker.ask("account") for worker in (theirs, ours)]
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < effort.min_pairs or (
        len(times[0]) < effort.max_pairs and time.perf_counter() - start < effort.seconds
    ):
        for worker, own in zip((theirs, ours), times, strict=True):
            own.append(worker.ask("seconds"))
    parts = ideal_seconds(case, ours.ask("costs", case, effort.repeats))
    bound = sum(parts.values())
    ratio = paired_ratio(*times)
    ideal = statistics.median(times[0]) / bound
    return {
        "name": case.name,
        "speedup": ratio.median,
        "spread": [ratio.low, ratio.high],
        "memory_ratio": accounts[0]["peak_bytes"] / accounts[1]["peak_bytes"],
        "ideal": ideal,
        "fraction_of_ideal": ratio.median / ideal,
        "goal": case.goal,
        "P": case.prompt_tokens,
        "C": case.completion_tokens,
        "K": case.num_completions,
        "pairs": len(times[0]),
        "seconds": {"trl": statistics.median(times[0]), "boresight": statistics.median(times[1]), "ideal": bound},
        "ideal_parts": {name: value / bound for name, value in parts.items()},
        "peak_mib": {side: account["peak_bytes"] / 2**20 for side, account in zip(sides, accounts, strict=True)},
        "encodes": {side: account["encodes"] for side, account in zip(sides, accounts, strict=True)},
        "tokens": {side: account["tokens"] for side, account in zip(sides, accounts, strict=True)},
        "logp_difference": difference,
        "case": asdict(case),
    }


def logp_difference(theirs: Any, ours: Any) -> float | None:
    """Largest difference between the two sides' log-probabilities; None where completions are sampled."""
    if theirs is None or ours is None:
        return None
    difference = float((theirs - ours).abs().max())
    if difference > MAX_LOGP_DIFFERENCE:
        raise RuntimeError(
            f"the two sides differ by {difference:.2e} nats on the same completions: they do not run the same inputs"
        )
    return difference


def table(records: list[dict[str, Any]], caption: str) -> Table:
    """The records for people."""
    shown = Table(caption=caption, caption_justify="left")
    for name in COLUMNS:
        shown.add_column(name, justify="left" if name == "case" else "right", no_wrap=True)
    for record in records:
        seconds, low, high = record["seconds"], *record["spread"]
        shown.add_row(
            record["name"],
            *(str(record[name]) for name in "PCK"),
            f"{seconds['trl']:.2f}",
            f"{seconds['boresight']:.2f}",
            f"{record['speedup']:.1f}×",
            f"{low:.1f}–{high:.1f}",
            "" if record["goal"] is None else f"{record['goal']:g}×",
            f"{record['ideal']:.1f}×",
            f"{record['fraction_of_ideal']:.0%}",
            f"{record['memory_ratio']:.1f}×",
            *(f"{record[work]['trl']}→{record[work]['boresight']}" for work in ("encodes", "tokens")),
        )
    return shown


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as the documentation shows them."""
    lines = [
        "| case | P | C | K | TRL | boresight | speed-up (quartiles) | goal | bound | of it | memory | encodes | tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        seconds, low, high = record["seconds"], *record["spread"]
        goal = "" if record["goal"] is None else f"{record['goal']:g}×"
        work = (f"{record[name]['trl']} → {record[name]['boresight']}" for name in ("encodes", "tokens"))
        cells = (
            record["name"],
            *(str(record[name]) for name in "PCK"),
            f"{seconds['trl']:.2f} s",
            f"{seconds['boresight']:.2f} s",
            f"**{record['speedup']:.1f}×** ({low:.1f}–{high:.1f})",
            goal,
            f"{record['ideal']:.1f}×",
            f"{record['fraction_of_ideal']:.0%}",
            f"1/{record['memory_ratio']:.1f}",
            *work,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="boresight beside TRL 1.16.")
    parser.add_argument(
        "--short", action="store_true", help="few repetitions, and the smallest shapes unless --only names others"
    )
    parser.add_argument("--quick", action="store_true", help="tiny cases in one process: shows that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one record per case")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as the documentation shows it")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[case.name for case in CASES], help="these cases alone"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch's operators (1)")
    return parser.parse_args(argv)


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    if args.quick:
        return list(QUICK_CASES)
    return [case for case in CASES if (case.name in args.only if args.only else case.short or not args.short)]


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    effort = QUICK if args.quick else SHORT if args.short else FULL
    load = os.getloadavg()[0]
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as scratch:
        records = []
        # Cases of a family stand side by side, since a worker has one model.
        for family, cases in itertools.groupby(chosen_cases(args), key=lambda case: case.family):
            folder = build_model(Path(scratch) / family, family, small=args.quick)
            theirs, ours = start_workers(("trl", "ours"), folder, Path(scratch), args.threads, apart=not args.quick)
            for case in cases:
                with console.status(case.name):
                    records.append(measured(case, theirs, ours, effort))
                if args.json:
                    args.json.write_text(json.dumps(records, indent=1))
                if args.markdown:
                    args.markdown.write_text(markdown(records))
            for worker in (theirs, ours):
                worker.close()
    caption = (
        f"{args.threads} thread(s), float32, load {load:.1f} before the start; medians of alternating runs; encodes and tokens are "
        "counted by hooks in every pass. The ideal does image, prompt, completions and head once each, at their measured cost."
    )
    console.print(table(records, caption))


if __name__ == "__main__":
    main()
