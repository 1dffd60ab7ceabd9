"""What a CUDA machine says about boresight, in one command: exactness, time, memory, and what runs at all.

    make gpu-check                                           # or, on a bare machine:
    PYTHONPATH=src python benchmarks/gpu_check.py [--only PART …] [--json FILE] [--markdown FILE] [--tiny]

Nothing of the network is needed: models have real configurations and random weights. Every part runs in a process of its own with a
time limit, and the next runs whatever became of it; what a part found before it failed or ran out of time is kept. The first part
takes a minute and is worth having alone. Without CUDA the same code runs with tiny sizes, which shows that all of it works; its
figures mean nothing, and what needs CUDA is reported as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, Part
from gpu_parts.rows import Row, Setting, failed, from_json, markdown, run_part

ROOT = Path(__file__).resolve().parents[1]


PATIENCE = 1 if torch.cuda.is_available() else 3
"""Multiplies time limits: on a CPU most of the time is the start of each process, on a machine that may do other work."""


SIDE_BY_SIDE = 1 if torch.cuda.is_available() else 2
"""Parts that run at the same time: one on a card, whose time and memory are measured."""


def run_apart(part: Part, tiny: bool, scratch: Path) -> list[Row]:
    """The rows of a part, run in a process of its own; one more row says if it failed or ran out of time."""
    limit = part.seconds * PATIENCE
    file, log = scratch / f"{part.name}.jsonl", scratch / f"{part.name}.log"
    command = [sys.executable, __file__, "--part", part.name, "--json", str(file), *(["--tiny"] if tiny else [])]
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        with log.open("w") as written:
            ended = subprocess.run(command, env=environment, stdout=written, stderr=subprocess.STDOUT, timeout=limit)
        problem = "" if ended.returncode == 0 else f"exit status {ended.returncode}: {_last_lines(log)}"
    except subprocess.TimeoutExpired:
        problem = f"ran out of its {limit} s"
    rows = from_json(file.read_text()) if file.exists() else []
    return [*rows, failed(part.name, "the whole part", problem)] if problem else rows


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text().strip().splitlines()[-3:])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a CUDA machine says about boresight.")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="some of the parts")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu_check.json"), help="results (%(default)s)")
    parser.add_argument("--markdown", type=Path, default=Path("runs/gpu_check.md"), help="a table (%(default)s)")
    parser.add_argument("--tiny", "--quick", action="store_true", help="tiny sizes, also on CUDA")
    parser.add_argument("--part", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        part = next(part for part in PARTS if part.name == args.part)
        setting = Setting.here(tiny=args.tiny)
        if not setting.cuda:
            torch.set_num_threads(1)  # tiny sizes gain nothing from more
        run_part(part.name, part.load(), setting, args.json)
        return
    for file in (args.json, args.markdown):
        file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    chosen = [part for part in PARTS if not args.only or part.name in args.only]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(SIDE_BY_SIDE) as threads:

        def timed(part: Part) -> tuple[list[Row], float]:
            start = time.perf_counter()
            return run_apart(part, args.tiny, Path(scratch)), round(time.perf_counter() - start, 1)

        for part, (found, seconds[part.name]) in zip(chosen, threads.map(timed, chosen), strict=True):
            rows += found
            print(f"\n{part.name}: {part.about} ({seconds[part.name]} s)\n{markdown(found)}", flush=True)
            # Written after every part: whoever stops the command keeps what it found.
            result: dict[str, Any] = {"rows": [row.record() for row in rows], "seconds": seconds}
            args.json.write_text(json.dumps(result, indent=1))
            args.markdown.write_text(markdown(rows) + "\n")
    print(f"\n{sum(row.status == 'failed' for row in rows)} of {len(rows)} failed; {args.json}, {args.markdown}")


if __name__ == "__main__":
    main()
