"""Two ranks of which one fails: started by `test_rank_link`, each as a process of its own, without a launcher that would end them.

Cases without a model import no trainer, which takes long.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from boresight import rank_link


def rank() -> int:
    return int(os.environ["RANK"])


def fails_on_the_second(completions: list[Any], **columns: Any) -> list[float]:
    if rank() == 1:
        raise KeyError("no such answer")
    return [0.5] * len(completions)


def rows_that_break(count: int) -> Any:
    """A stream whose third row cannot be read on the first rank."""
    from .trainer.conftest import demonstrations

    for number, row in enumerate(demonstrations(count)):
        if number == 2 and rank() == 0:
            raise OSError("the disk is gone")
        yield row


def reader(model: str, folder: str) -> None:
    from datasets import IterableDataset

    sft(model, folder, IterableDataset.from_generator(rows_that_break, gen_kwargs={"count": 8})).train()


def reward(model: str, folder: str) -> None:
    from boresight import GRPOConfig, GRPOTrainer

    from .trainer.conftest import QUIET, records

    options: dict[str, Any] = {
        "num_generations": 4,
        "max_completion_length": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
    }
    GRPOTrainer(model, fails_on_the_second, GRPOConfig(**{**QUIET, **options}, output_dir=folder), records(8)).train()


def sft(model: str, folder: str, rows: Any = None, **more: Any) -> Any:
    from boresight import SFTConfig, SFTTrainer

    from .trainer.conftest import QUIET, demonstrations

    options: dict[str, Any] = {**QUIET, "max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True}
    config = SFTConfig(**options | more, output_dir=folder)
    return SFTTrainer(model, config, demonstrations(12) if rows is None else rows)


def killed(model: str, folder: str) -> None:
    trainer = sft(model, folder)
    loss = trainer.loss

    def dying(*arguments: Any) -> Any:
        if rank() == 1 and trainer.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(*arguments)

    trainer.loss = dying
    trainer.train()


def memory(model: str, folder: str) -> None:
    """The second rank's second micro-batch does not fit, where the ranks gather one layer after another."""
    from .trainer.shards import FSDP2_LAYERS

    os.environ.update(FSDP2_LAYERS)
    trainer = sft(model, folder, max_tokens_per_pass=1)
    loss, seen = trainer.loss, []

    def failing(*arguments: Any) -> Any:
        seen.append(arguments)
        if rank() == 1 and len(seen) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return loss(*arguments)

    trainer.loss = failing
    trainer.train()


def meet(wait_s: float = 60.0) -> None:
    """The ranks meet in a collective, without a model."""
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    rank_link.WAIT_S = wait_s
    rank_link.start()


def slow(model: str, folder: str) -> None:
    """The second rank is late once, and the first says so."""
    meet(wait_s=0.5)
    rank_link.at("step 1")
    if rank() == 1:
        time.sleep(3)
    rank_link.at("the last micro-batch")
    PartialState().wait_for_everyone()
    time.sleep(1)


def hanging(model: str, folder: str) -> None:
    """The second rank has failed and yet lives: its collectives do not end, so the first must leave them by itself."""
    meet()
    try:
        with rank_link.together():
            if rank() == 1:
                raise ValueError("the loss is broken")
            reduce(torch.ones(2))
    except ValueError:
        time.sleep(15)
        raise


def late(model: str, folder: str) -> None:
    """A rank that ended well is no failure for one that still works."""
    meet()
    with rank_link.together():
        rank_link._link[0].enter(-1)
        PartialState().wait_for_everyone()
    if rank() == 0:
        time.sleep(4)


if __name__ == "__main__":
    case, model, folder = sys.argv[1:]
    try:
        cases = (reward, reader, killed, memory, slow, hanging, late)
        {each.__name__: each for each in cases}[case](model, folder)
    except BaseException as error:
        print(f"RAISED {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    os._exit(0)
