"""A run from its start to its end: the folder and the checkpoint that it starts from, and what is saved when it ends early."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import TrainerCallback

from boresight import rank_link
from boresight.errors import BoresightError, ConfigError
from boresight.rank_link import together
from boresight.ranks import is_raised_everywhere, on_first_rank
from boresight.report.metrics import MeanMetrics
from boresight.trainer.checkpoint import CheckpointedTrainer
from boresight.trainer.manifest import faults
from boresight.trainer.random_states import random_states, random_states_kept
from boresight.trainer.redistribution import merged_sums
from boresight.trainer.run_folder import PREFIX

Moment = Literal["between steps", "in a step", "changing weights"]


class BuiltTogether(type):
    """Of classes whose instances all ranks build together: an error of one in a constructor is raised on all of them."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        with together():
            return super().__call__(*arguments, **options)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, for `help` and editors, which would show `__call__`'s."""
        full = inspect.signature(cls.__init__)
        return full.replace(parameters=[*full.parameters.values()][1:])


class LifecycleTrainer(CheckpointedTrainer, metaclass=BuiltTogether):
    """Trains in a folder of its own, and saves the last finished step before an error ends the run."""

    metrics: MeanMetrics
    saves_before_ending = True
    """Whether an error that ends the run is preceded by a checkpoint."""
    _moment: Moment = "between steps"
    _before_step: tuple[Any, MeanMetrics, Tensor, float]
    """Before the step that is being computed: random states, sums of the log and of the loss, and floating-point operations."""
    _restored_sums: dict[str, Any] | None = None

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train. An error that ends the run is raised after a checkpoint of the last finished step.

        Args:
            resume_from_checkpoint: the folder of a checkpoint, or True or ``last`` for the newest whole one in `output_dir`, or
                False. None: the option of that name.
            trial, ignore_keys_for_eval: as in transformers.

        Raises:
            ConfigError: the folder holds another run, or another process trains in it, or the checkpoint belongs to another run.
            CheckpointError: the checkpoint is damaged.
            DiskError: the folder cannot be written to, or its disk is full.
        """
        asked = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        with together(), self._folder_held():
            checkpoint = on_first_rank(lambda: self._enter(asked))
            self._moment = "between steps"
            try:
                return super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
            except BaseException as error:
                self._save_before_ending(error)
                raise
            finally:
                self.is_in_train = False

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As in transformers. An error on one rank is raised on all of them."""
        with together():
            return super().evaluate(*arguments, **options)

    @contextlib.contextmanager
    def _folder_held(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            on_first_rank(lambda: held.enter_context(self.run_folder.held()))
            yield

    def _enter(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to start from; the folder is this run's from then on."""
        overwrite = self.args.overwrite_output_dir
        is_new = asked is None or asked is False or str(asked).lower() in ("none", "false")
        if overwrite and not is_new:
            raise ConfigError(
                "overwrite_output_dir=True moves aside what resume_from_checkpoint would continue: set one of them."
            )
        resume = None if is_new else self.run_folder.checkpoint(asked)  # pyright: ignore[reportArgumentType]
        self.run_folder.enter(self.identity, resume=resume, overwrite=overwrite)
        return resume

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which would take one more step after a checkpoint that is the end of its run."""
        if self.state.global_step >= self.state.max_steps:
            if self.is_world_process_zero():
                self.accelerator.print(
                    f"boresight: all {self.state.max_steps} steps are done already; nothing is trained."
                )
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # ---- Ending early -----------------------------------------------------------------------------------------------------------

    def _save_before_ending(self, error: BaseException) -> None:
        """Save a checkpoint of the last finished step, and add to the error how to resume."""
        step = self.state.global_step
        if not self.saves_before_ending or not self.is_in_train or step == self._first_step:
            return
        folder = self.run_folder.path / f"{PREFIX}{step}"
        try:
            if faults(folder, digests=False):
                if reason := self._why_not_now(error):
                    error.add_note(
                        f"boresight: no checkpoint of step {step} was saved, because {reason}. {self._newest()}"
                    )
                    return
                with self._as_before_the_step():
                    self._save_checkpoint(self.model, trial=None)  # pyright: ignore[reportArgumentType]
        except BoresightError as other:
            error.add_note(f"boresight: no checkpoint of step {step} was saved: {other}")
            return
        error.add_note(
            f"boresight: the last finished step is saved in {folder}; resume with trainer.train(resume_from_checkpoint=True)."
        )

    _first_step = 0

    def _why_not_now(self, error: BaseException) -> str | None:
        if self._moment == "changing weights":
            return "the optimizer was changing the weights"
        if self.args.world_size > 1 and not is_raised_everywhere(error):
            return "the error is of one rank alone, and a checkpoint needs all of them"
        return None

    def _newest(self) -> str:
        found = self.run_folder.checkpoints()
        return f"The newest checkpoint is {found[-1]}." if found else "There is no earlier one."

    @contextlib.contextmanager
    def _as_before_the_step(self) -> Iterator[None]:
        """With the random states and the sums of the log as the last finished step left them."""
        if self._moment == "between steps":
            yield
            return
        states, sums, loss, self.current_flos = self._before_step
        self.metrics.exchange(sums)
        loss_now, self._tr_loss = self._tr_loss, loss
        try:
            with random_states_kept(states):
                yield
        finally:
            self.metrics.exchange(sums)
            self._tr_loss = loss_now

    # ---- Steps and their sums ---------------------------------------------------------------------------------------------------

    def finish_step(self) -> None:
        """Called once an optimizer step is done. State that the next step reads changes here, and not before."""

    def state_of_method(self) -> dict[str, Any]:
        sums = {
            "metrics": self.metrics.state_dict(),
            "loss": self._tr_loss.detach().cpu(),
            "step_of_last_log": self._globalstep_last_logged,
        }
        return super().state_of_method() | {"sums": sums}

    def redistributed(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        sums = merged_sums([state["sums"] for state in states], self.args.process_index, self.args.world_size)
        return super().redistributed(states) | {"sums": sums}

    def restore_method(self, state: dict[str, Any]) -> None:
        super().restore_method(state)
        self._restored_sums = state["sums"]

    def before_weights_change(self) -> None:
        """Called by the optimizer as the first thing of its step, after every callback."""
        self._moment = "changing weights"

    _hook: Any = None

    def _begin(self) -> None:
        """The sums between two logs, as the checkpoint has them. transformers' loop starts its own at 0."""
        self._first_step = self.state.global_step
        if self._hook is not None:
            self._hook.remove()
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        self._hook = optimizer.register_step_pre_hook(lambda *_: self.before_weights_change())
        sums, self._restored_sums = self._restored_sums, None
        if sums is not None:
            self.metrics.load_state_dict(sums["metrics"])
            self._tr_loss: Tensor = sums["loss"].to(self.args.device)
            self._globalstep_last_logged: int = sums["step_of_last_log"]
            # The summary's mean loss is over the steps of this call.
            self._total_loss_scalar = -float(self._tr_loss)


class StepBoundary(TrainerCallback):
    """Notes where a step begins and ends. The first of all callbacks, so that an error in another one finds it done."""

    def __init__(self, trainer: LifecycleTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._trainer._begin()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        trainer = self._trainer
        trainer._before_step = random_states(), trainer.metrics.copied(), trainer._tr_loss.clone(), trainer.current_flos
        trainer._moment = "in a step"
        rank_link.at(f"step {trainer.state.global_step + 1}")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer._moment = "between steps"
        self._trainer.finish_step()
