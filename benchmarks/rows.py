"""From a large table of image files to the first optimizer step: seconds, memory, and how much of it a second start saves.

    .venv/bin/python benchmarks/rows.py [--rows 100000] [--images 100000] [--json FILE]

Writes a CSV and image files to a temporary folder, then trains one step of SFT twice in processes of their own. The first start reads the
table, opens every image's header, counts every row's tokens and decodes images for 20 seconds, with a progress bar; the second finds what
the first kept. The model is a tiny Qwen2.5-VL, whose template and image budget are the real family's. `--quick` is for tests: a few rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import csv

from PIL import Image
from rich.console import Console
from rich.table import Table

PARTS = ("read the table", "check the rows, and build the trainer", "first step")


def write_rows(folder: Path, num_rows: int, num_images: int) -> None:
    """A CSV whose rows name image files of about 60 KB."""
    (folder / "images").mkdir()
    for number in range(num_images):
        size = (320 + number % 64, 240)
        Image.effect_noise(size, 40 + number % 50).convert("RGB").save(folder / "images" / f"{number}.jpg")
    with (folder / "train.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "question", "answer"])
        table.writerows(
            [f"images/{row % num_images}.jpg", f"What is in image {row}?", str(row)] for row in range(num_rows)
        )


def start(folder: Path, model: Path) -> dict[str, Any]:
    """Train one step in this process."""
    from boresight import SFTConfig, SFTTrainer
    from boresight.data.mixture import DatasetConfig, read_dataset

    config = SFTConfig(
        output_dir=f"{folder.parent}/run-{os.getpid()}", max_steps=1, report_to="none", save_strategy="no", use_cpu=True
    )
    times, before = [time.perf_counter()], _cpu_seconds()
    records = read_dataset(DatasetConfig(str(folder), prompt_column="question", completion_column="answer"))
    times.append(time.perf_counter())
    trainer = SFTTrainer(str(model), config, records)
    times.append(time.perf_counter())
    loss = trainer.train().training_loss
    times.append(time.perf_counter())
    return {
        "seconds": [after - before for before, after in pairwise(times)],
        "cpu_seconds": _cpu_seconds() - before,
        "peak_mib": max(each.ru_maxrss for each in _usage()) // 1024,
        "loss": loss,
    }


def _usage() -> list[resource.struct_rusage]:
    """What this process and its children, those that have ended, have used."""
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def _cpu_seconds() -> float:
    return sum(each.ru_utime + each.ru_stime for each in _usage())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="From a large table of image files to the first step.")
    parser.add_argument("--rows", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--images", type=int, default=None, help="image files; as many as rows unless given")
    parser.add_argument("--quick", action="store_true", help="a few rows: shows that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--start", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.start:
        print(json.dumps(start(*options.start)))
        return
    num_rows = 1200 if options.quick else options.rows
    num_images = 40 if options.quick else options.images or num_rows
    with tempfile.TemporaryDirectory() as place:
        from boresight.demo.tiny import build_tiny

        folder, model = Path(place) / "data", build_tiny("qwen2_5_vl", Path(place) / "model", vocab_size=512)
        folder.mkdir()
        write_rows(folder, num_rows, num_images)
        caches = {"HF_DATASETS_CACHE": f"{place}/datasets", "BORESIGHT_CACHE": f"{place}/boresight"}
        starts = []
        for _ in range(2):
            command = [sys.executable, __file__, "--start", str(folder), str(model)]
            done = subprocess.run(command, env=os.environ | caches, check=True, stdout=subprocess.PIPE, text=True)
            starts.append(json.loads(done.stdout.splitlines()[-1]))
    result = {
        "rows": num_rows,
        "images": num_images,
        "cores": len(os.sched_getaffinity(0)),
        "first": starts[0],
        "second": starts[1],
    }
    table = Table("", "first start", "second start", "faster")
    for place, part in enumerate(PARTS):
        first, second = (each["seconds"][place] for each in starts)
        table.add_row(part, f"{first:.1f} s", f"{second:.2f} s", f"{first / second:.1f}×")
    totals = [sum(each["seconds"]) for each in starts]
    table.add_row("together", f"{totals[0]:.1f} s", f"{totals[1]:.2f} s", f"{totals[0] / totals[1]:.1f}×")
    table.add_row("CPU seconds of all processes", *(f"{each['cpu_seconds']:.1f} s" for each in starts), "")
    table.add_row("peak memory of a process", *(f"{each['peak_mib']} MiB" for each in starts), "")
    console = Console(width=100)
    console.print(f"{num_rows:,} rows, {num_images:,} image files, {result['cores']} cores")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
