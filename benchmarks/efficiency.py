"""How much longer a step takes in two processes than in one, at equal work in each process.

    .venv/bin/python benchmarks/efficiency.py [--steps N] [--rows N] [--json FILE]

One process with one thread learns from N rows a step; two, each with one thread and N rows, learn from 2·N, and exchange gradients (DDP).
Efficiency is the first's seconds over the second's: 1 if nothing is lost. Beside it is that of the plan (`boresight doctor --plan`), which
adds the exchange of gradients to the step of one process, at the rate at which the two processes send to each other here. Two cores
must be idle; the load is printed. `--quick` is for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")


def trained(model: str, steps: int, rows: int, file: Path) -> None:
    """Train in this process, and write the seconds of each counted step and this process's seconds of computing."""
    # In the processes that are measured alone, since the others only start them.
    import torch
    from accelerate import PartialState
    from step_clock import WARM_UP, StepClock

    from boresight import SFTConfig, SFTTrainer
    from boresight.demo.easy_vqa import load_easy_vqa

    torch.set_num_threads(1)
    found: Any = load_easy_vqa("train", num_rows=2)
    row = found[0]
    question = {"role": "user", "content": "which " * 60 + "shape?"}
    same = {"prompt": [question], "image": row["image"], "completion": [{"role": "assistant", "content": "blue " * 30}]}
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "preflight": "off"}
    config = SFTConfig(
        output_dir=str(file.parent / f"run{ranks}"),
        max_steps=steps + WARM_UP,
        per_device_train_batch_size=rows,
        gradient_checkpointing=False,
        **options,
    )
    clock = StepClock()
    SFTTrainer(model, config, [same] * rows * ranks, callbacks=[clock]).train()
    link = bytes_per_second() if ranks == 2 else 0.0
    if PartialState().is_main_process:
        file.write_text(json.dumps({"seconds": clock.seconds, "link": link}))
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # threads of the process group may abort the process at exit


def bytes_per_second() -> float:
    """The rate at which two processes send to each other, each way at the same time; median of ten transfers of 32 MiB."""
    import torch
    from torch import distributed

    mine, other = torch.ones(2**23), torch.empty(2**23)
    peer = 1 - distributed.get_rank()
    seconds = []
    for _ in range(10):
        distributed.barrier()
        start = time.perf_counter()
        sent, received = distributed.isend(mine, peer), distributed.irecv(other, peer)
        for transfer in (sent, received):
            assert transfer is not None
            transfer.wait()
        seconds.append(time.perf_counter() - start)
    return mine.nbytes / statistics.median(seconds)


def planned(model: Path, one: float, link: float) -> float:
    """The plan's seconds of a step in two processes, from those in one process."""
    from boresight.doctor.cost import CARDS, Rates, Work, step_seconds
    from boresight.doctor.size import size_of

    rates = Rates(card=replace(CARDS["h100"], link=link), bandwidth_share=1.0)
    found = step_seconds(size_of(str(model)), Work(), rates, 2, adapter_weights=0, sharded=False, held_bytes=0)
    assert found is not None
    return one + found.exchange


def measured(model: Path, folder: Path, ranks: int, effort: argparse.Namespace) -> dict[str, Any]:
    """Seconds, and seconds of computing in the first process, of each counted step; and two processes' rate of sending."""
    file = folder / f"{ranks}.json"
    launcher = ["-m", *TORCHRUN] if ranks == 2 else []
    worker = [__file__, "--worker", str(model), str(effort.steps), str(effort.rows), str(file)]
    done = subprocess.run([sys.executable, *launcher, *worker], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-5000:])
    return json.loads(file.read_text())


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="Counted steps of a run.")
    parser.add_argument("--rows", type=int, default=8, help="Rows of a step in each process.")
    parser.add_argument("--json", type=Path, help="A file for the figures.")
    parser.add_argument("--quick", action="store_true", help="For tests: a small model and few steps.")
    effort = parser.parse_args(arguments)
    if effort.quick:
        effort.steps, effort.rows = 2, 2
    load = os.getloadavg()[0]
    from workload import build_model  # imports torch, which a worker imports by itself

    with tempfile.TemporaryDirectory() as folder:
        model = build_model(Path(folder) / "model", small=effort.quick)
        one, two = (measured(model, Path(folder), ranks, effort) for ranks in (1, 2))
        found = {
            "one": statistics.median(wall for wall, _ in one["seconds"]),
            "two": statistics.median(wall for wall, _ in two["seconds"]),
            "one computing": statistics.median(own for _, own in one["seconds"]),
            "two computing": statistics.median(own for _, own in two["seconds"]),
            "link": two["link"],
            "load": load,
        }
        found["planned"] = planned(model, found["one"], found["link"])
    found["efficiency"] = found["one"] / found["two"]
    found["planned efficiency"] = found["one"] / found["planned"]
    print(
        f"seconds of a step: {found['one']:.3f} in one process, {found['two']:.3f} in two; of computing in the first process: "
        f"{found['one computing']:.3f} and {found['two computing']:.3f}; efficiency {found['efficiency']:.2f} (load before: {load:.1f})\n"
        f"the plan, at {found['link'] / 1e9:.2f} GB/s between them: {found['planned']:.3f} s in two, efficiency "
        f"{found['planned efficiency']:.2f}"
    )
    if effort.json:
        effort.json.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    if "--worker" in sys.argv:
        model, steps, rows, file = sys.argv[sys.argv.index("--worker") + 1 :]
        trained(model, int(steps), int(rows), Path(file))
    main()
