"""The training commands: they wrap a trainer's `train` with interrupt handling, saving and a summary."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from boresight.cli.adapter import peft_config
from boresight.cli.command import Command
from boresight.cli.held_out import add_held_out_rows
from boresight.cli.rows import load_datasets
from boresight.cli.summary import print_summary
from boresight.doctor.memory import available_bytes
from boresight.errors import ModelError, StoppedError
from boresight.export.verify import Probe, changed_tensors, log_probs, make_probes, shown_changes, verify_folder
from boresight.files import in_units
from boresight.model.shards import gathered
from boresight.trainer.base import GroupTrainer
from boresight.trainer.run_folder import RunFolder, check_is_not_model


def run(command: Command) -> None:
    """Run a training command, from loading its rows to saving its model."""
    training = command.training
    if training.resume_from_checkpoint is None and os.environ.get("RANK", "0") == "0":  # before a long loading
        RunFolder(training.output_dir).check_free(overwrite=training.overwrite_output_dir)
    check_is_not_model(training.output_dir, command.model.model_name_or_path)
    train_dataset, eval_dataset = load_datasets(command)
    if eval_dataset is None:
        eval_dataset = add_held_out_rows(command)
    sampled = command.sampled()
    trainer = command.method.trainer_class()(
        model=command.model.model_name_or_path,
        args=command.training,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config(command),
        **sampled,
    )
    train(command, trainer)


def train(command: Command, trainer: GroupTrainer[Any]) -> None:
    """Train, save, and print a summary.

    Raises:
        StoppedError: training was interrupted by SIGINT (Ctrl-C) or SIGTERM. The message names the checkpoint, and `signal` is the number.
        ModelError: the saved folder, loaded anew, is not the model that was trained.
    """
    begun = time.perf_counter()
    # Without this, threads of the process group may abort the process at exit after a successful run.
    atexit.register(trainer.accelerator.state.destroy_process_group)
    logging.disable_progress_bar()  # a checkpoint's shards would break into the line of the training bar
    folder = Path(command.training.output_dir)
    trainer.run_folder.note(command=typed(command))
    with saving_when_interrupted(trainer) as stop:
        try:
            trainer.train(resume_from_checkpoint=command.training.resume_from_checkpoint)
        except KeyboardInterrupt as error:
            found = RunFolder(folder).checkpoints()
            ways = f"Resume from {found[-1]} with: {resuming(command)}" if found else "There is no checkpoint."
            step = trainer.state.global_step
            raise StoppedError(f"interrupted at once, after step {step}. {ways}", stop.number) from error
    if stop.obeyed:
        checkpoint = folder / f"checkpoint-{trainer.state.global_step}"
        raise StoppedError(
            f"interrupted after step {trainer.state.global_step} of {trainer.state.max_steps}; everything is in {checkpoint}.\n"
            f"Resume with: {resuming(command)}",
            stop.number,
        )
    trainer.save_model(str(folder))
    trainer.save_state()
    seconds = time.perf_counter() - begun
    is_first = trainer.is_world_process_zero()
    # All ranks: the first one's pass needs the whole weights, or the others' part in gathering layer by layer.
    with gathered(trainer.policy.outer, layers=not trainer.by_layers):
        known = probed(trainer) if is_first or trainer.by_layers else None
    if is_first and known is not None:
        verified, fault = verified_model(command, trainer, folder, known)
        print_summary(command, trainer, seconds, verified)
        if fault is not None:
            raise fault


def probed(trainer: GroupTrainer[Any]) -> tuple[Sequence[Probe], Sequence[Tensor]] | ModelError:
    """Some prompts, and the log-probabilities of their tokens under the trained model; or why there are none."""
    model = trainer.policy.outer
    try:
        probes = make_probes(model, trainer.encoder.processor)
        return probes, log_probs(model, probes)
    except ModelError as error:
        return error


def verified_model(
    command: Command,
    trainer: GroupTrainer[Any],
    folder: Path,
    known: tuple[Sequence[Probe], Sequence[Tensor]] | ModelError,
) -> tuple[str, ModelError | None]:
    """The saved model loaded anew by plain transformers and compared with the trained one: what to say, and the error if it differs.

    It is loaded beside the trained model, on the CPU; where there is no memory for it, that is said.

    Args:
        known: from `probed`.
    """
    if isinstance(known, ModelError):
        return "NO: see the error below", known
    model = trainer.policy.outer
    needed, free = sum(weight.numel() * 4 for weight in model.parameters()), available_bytes(torch.device("cpu"))
    if free is not None and needed > free / 2:
        return f"not loaded anew: it takes {in_units(needed)} of {in_units(free)} (boresight export verifies it)", None
    try:
        found = verify_folder(
            folder,
            *known,
            trust_remote_code=command.training.trust_remote_code,
            quantization_config=(command.training.model_init_kwargs or {}).get("quantization_config"),
        )
    except ModelError as error:
        return "NO: see the error below", error
    is_adapter = (folder / "adapter_config.json").exists()
    changes = None if is_adapter else changed_tensors(command.model.model_name_or_path, folder)
    return f"{found}{'' if changes is None else f'; {shown_changes(changes)}'}", None


class Stop(TrainerCallback):
    """Ends training, with a checkpoint, after the step in which a signal arrived. All ranks end at the same step."""

    def __init__(self, trainer: GroupTrainer[Any]) -> None:
        self.trainer = trainer
        self.asked = False
        self.obeyed = False
        self.number = int(signal.SIGINT)
        """The first signal that arrived."""
        self._process = os.getpid()
        # With several processes, the launcher forwards a Ctrl-C that the terminal has already sent to all of them.
        self._grace_s = 2.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        self._asked_at = 0.0

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first ends training after the step, the second ends it at once."""
        if os.getpid() != self._process:  # a loader's worker ends with its parent
            return
        if self.asked:
            if time.monotonic() - self._asked_at < self._grace_s:
                return
            self.trainer.saves_before_ending = False
            raise KeyboardInterrupt
        self.asked, self._asked_at, self.number = True, time.monotonic(), number
        if self.trainer.is_world_process_zero():
            print(
                "\nboresight: stopping after this step, with a checkpoint (press again to stop at once, without one)",
                file=sys.stderr,
                flush=True,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.accelerator.num_processes > 1:
            asked: Any = torch.tensor(int(self.asked), device=args.device)
            everywhere: Any = self.trainer.accelerator.reduce(asked, reduction="sum")
            self.asked = bool(everywhere > 0)
        if self.asked:
            control.should_save = control.should_training_stop = self.obeyed = True


@contextmanager
def saving_when_interrupted(trainer: GroupTrainer[Any]) -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a stop with a checkpoint after the current step."""
    stop = Stop(trainer)
    trainer.add_callback(stop)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def typed(command: Command) -> str:
    """The command line as it was typed, without the values of tokens and keys."""
    words = [*command.program, *command.words]
    for place, word in enumerate(words):
        name, sign, _ = word.partition("=")
        if name.startswith("-") and name.endswith(("_token", "-token", "_key", "-key")):
            if sign:
                words[place] = f"{name}=…"
            elif place + 1 < len(words):
                words[place + 1] = "…"
    return shlex.join(words)


def resuming(command: Command) -> str:
    """The command line that resumes from the newest checkpoint."""
    words = list(command.words)
    for place, word in enumerate(words):
        if word.split("=")[0].replace("-", "_") == "__resume_from_checkpoint":
            del words[place : place + (1 if "=" in word else 2)]
            break
    return shlex.join([*command.program, *words, "--resume_from_checkpoint", "last"])
