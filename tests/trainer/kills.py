"""Kills real runs with SIGKILL at random moments, a third of them while a checkpoint is written, and resumes each to its end.

    python -m tests.trainer.kills MODEL FOLDER --trials 200 --seed 0

prints what was killed and what came of it, and exits with 1 unless every run ended with the bits of one that was not killed.
Runs are forked from this process, which has imported everything, so that a trial takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.trainer.manifest import faults
from boresight.trainer.run_folder import RunFolder

from .conftest import QUIET, demonstrations, records, vowel_share
from .test_dpo import preferences

COMMON: dict[str, Any] = {
    **QUIET,
    "use_cpu": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 4,
    "verdict_steps": 0,
}
STEPS = 6
ROWS = {"sft": demonstrations, "mpo": preferences, "grpo": records}


def trainer_of(method: str, model: str, folder: Path, rows: Any, limit: int, ranks: int) -> Any:
    """A tiny run: SFT; MPO, whose δ is carried from step to step; or GRPO, of whose completions some are still to be learned from."""
    options = {**COMMON, "output_dir": str(folder), "max_steps": STEPS, "save_total_limit": limit}
    if method == "sft":
        return SFTTrainer(model, SFTConfig(**options, per_device_train_batch_size=4 // ranks), rows)
    if method == "mpo":
        loss: dict[str, Any] = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
        config = DPOConfig(**options, **loss, per_device_train_batch_size=4 // ranks)
        return DPOTrainer(model, args=config, train_dataset=rows)
    buffered = {"steps_per_generation": 2, "num_iterations": 2, "num_generations": 4, "max_completion_length": 4}
    config = GRPOConfig(**options, **buffered, gold_check="off", per_device_train_batch_size=8 // ranks)
    return GRPOTrainer(model, vowel_share, config, rows)


def run(
    method: str, model: str, folder: Path, rows: Any, limit: int, ranks: int, before: Callable[[Any], None]
) -> None:
    """Train to the end from the newest whole checkpoint, or from the start, and save the model."""
    trainer = trainer_of(method, model, folder, rows, limit, ranks)
    before(trainer)
    is_new = not RunFolder(folder).checkpoints()
    trainer.args.overwrite_output_dir = is_new
    trainer.train(resume_from_checkpoint=None if is_new else True)
    trainer.save_model(str(folder))
    # What was logged is the same too, but for the times.
    lines = [
        {name: value for name, value in line.items() if name[:5] != "time/"}
        for line in trainer.state.log_history
        if "loss" in line
    ]
    if trainer.is_world_process_zero():
        torch.save(lines, folder / "log.pt")


@contextlib.contextmanager
def killed_in_a_save(trainer: Any, number: int, delay_s: float) -> Iterator[None]:
    """Kill this process so long after it began to write its checkpoint of that number."""
    save, seen = trainer._save_checkpoint, [0]

    def saved(*args: Any, **kwargs: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            threading.Timer(delay_s, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        save(*args, **kwargs)

    trainer._save_checkpoint = saved
    yield


def forked(work: Callable[[], None], log: Path, *, rank: int = 0, ranks: int = 1, port: int = 0) -> int:
    """Start a process of its own, and return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
            }
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Trials:
    """Trials of one method."""

    def __init__(self, method: str, ranks: int, model: str, folder: Path) -> None:
        self.method, self.ranks, self.model, self.folder = method, ranks, model, folder
        self.name = method if ranks == 1 else f"{method}, {ranks} ranks"
        self.rows = ROWS[method]()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun = time.perf_counter()
        assert self._wait(self._start(folder / "whole", 1, lambda _: None)) == 0, (folder / "log.txt").read_text()[
            -3000:
        ]
        self.seconds = time.perf_counter() - begun
        self.counts: Counter[str] = Counter()

    def _start(self, folder: Path, limit: int, before: Callable[[Any], None]) -> list[int]:
        port = free_port()
        arguments = (self.method, self.model, folder, self.rows, limit, self.ranks, before)
        return [
            forked(lambda: run(*arguments), self.folder / "log.txt", rank=rank, ranks=self.ranks, port=port)
            for rank in range(self.ranks)
        ]

    def _wait(self, children: list[int], kill_after_s: float | None = None) -> int:
        """Wait for all ranks; one that ends otherwise than well takes the others with it, as a launcher does."""
        deadline = None if kill_after_s is None else time.monotonic() + kill_after_s
        left, worst = set(children), 0
        while left:
            for child in [*left]:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    left.remove(child)
                    worst = worst or os.waitstatus_to_exitcode(status)
            if left and (worst or (deadline is not None and time.monotonic() > deadline)):
                for child in left:
                    os.kill(child, signal.SIGKILL)
                deadline = None
            time.sleep(0.005)
        return worst

    def trial(self, number: int, generator: random.Random) -> str | None:
        """Kill one run and resume it; returns what went wrong."""
        folder = self.folder / f"trial{number}"
        limit = generator.choice([1, 2])
        if number % 3 == 0:
            place = generator.randint(1, STEPS)
            # A save of this model takes some 50 ms.
            delay = generator.uniform(0, 0.06)
            kind = "in a save"
            code = self._wait(
                self._start(folder, limit, lambda trainer: killed_in_a_save(trainer, place, delay).__enter__())
            )
        else:
            kind = "anywhere"
            code = self._wait(self._start(folder, limit, lambda _: None), generator.uniform(0.05, 0.95) * self.seconds)
        if code not in (0, -signal.SIGKILL):
            return f"{folder}: ended with {code} before it was killed"
        self.counts["ended before it was killed" if code == 0 else f"killed {kind}"] += 1
        found = RunFolder(folder).checkpoints()
        self.counts["with a checkpoint"] += bool(found)
        if broken := {path.name: wrong for path in found if (wrong := faults(path))}:
            return f"{folder}: {broken}"
        if code != 0 and self._wait(self._start(folder, limit, lambda _: None)) != 0:
            return f"{folder}: did not resume"
        if wrong := self._differs(folder):
            return f"{folder}: {wrong}"
        self.counts["resumed to the same bits"] += code != 0
        shutil.rmtree(folder)
        return None

    def _differs(self, folder: Path) -> str | None:
        whole = self.folder / "whole"
        one, other = (load_file(path / "model.safetensors") for path in (whole, folder))
        if not all(torch.equal(value, other[name]) for name, value in one.items()):
            return "other weights"
        if torch.load(whole / "log.pt") != torch.load(folder / "log.pt"):
            return "other logs"
        if left := [
            path.name
            for path in folder.iterdir()
            if path.name.startswith((".saving", ".replaced", ".removing", ".model"))
        ]:
            return f"left behind: {left}"
        return None


KINDS = (("sft", 1), ("mpo", 1), ("grpo", 1), ("sft", 2))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = random.Random(options.seed)
    wrong: list[str] = []
    total: Counter[str] = Counter()
    for place, (method, ranks) in enumerate(KINDS):
        trials = Trials(method, ranks, options.model, options.folder / f"{method}{ranks}")
        for number in range(place, options.trials, len(KINDS)):
            if (found := trials.trial(number // len(KINDS), generator)) is not None:
                wrong.append(found)
                print(found, flush=True)
        print(f"{trials.name}: {dict(trials.counts)}", flush=True)
        total += trials.counts
    print(f"all: {dict(total)}; wrong: {len(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
