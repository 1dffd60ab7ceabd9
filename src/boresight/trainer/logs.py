"""What a run writes about its steps: the log, RUN/metrics.jsonl, and a line for every step in RUN/steps.jsonl."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback

from boresight.model.reference import Reference
from boresight.model.shards import whole
from boresight.report.jsonl import StepLines
from boresight.trainer.row_trainer import RowTrainer
from boresight.trainer.update import Item

NOT_BY_STEP = re.compile("time/|work/|num_tokens$")
"""Metrics that steps.jsonl leaves out: timeline.jsonl has the seconds, and the others are totals."""


class LoggingTrainer(RowTrainer[Item]):
    """Logs the metrics of steps, over all ranks, and keeps them by step."""

    reference: Reference | None
    metric_lines: StepLines
    step_lines: StepLines
    verdict_lines: StepLines

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last log, and append the log entry to RUN/metrics.jsonl."""
        if "loss" in logs:
            self._write_steps()
            logs = {**logs, **self.metrics.flush(gather=self._gather)}
            if "num_tokens" in logs:
                self._num_tokens += int(logs["num_tokens"])
                logs["num_tokens"] = self._num_tokens
            if self.take_lost_loss():
                logs["loss"] = math.nan
        super().log(logs, start_time)
        logged = dict(self.state.log_history[-1])
        self.metric_lines.add(int(logged.pop("step")), logged)

    _num_tokens = 0
    """Tokens that were trained on since the run began, as TRL counts them: a prompt once for each of its completions."""

    def discard_after(self, step: int) -> int:
        """Remove an earlier process's output about later steps from the run folder, and return the number of removed lines and files.

        Runs on the first rank only.
        """
        files = (self.timeline, self.metric_lines, self.step_lines, self.verdict_lines)
        return sum(file.discard_after(step) for file in files)

    def finish_step(self) -> None:
        super().finish_step()
        self.metrics.end_step(
            self.state.global_step,
            loss=self._computed[1] * self.accelerator.num_processes,
            grad_norm=self._grad_norm,
            learning_rate=self._get_learning_rate(),
        )

    _grad_norm: Any = math.nan
    """Of the last step, on the device: it is read with the step's other metrics."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        # With shards it is a sum over ranks, of which torch 2.9 reads this rank's part.
        self._grad_norm = whole(norm)
        return self._grad_norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the base class, after what is known of each step is in RUN/steps.jsonl: the checkpoint has their sums alone."""
        self._writing(Path(self._get_output_dir(trial)) / "steps.jsonl", self._write_steps)
        super()._save_checkpoint(model, trial)

    def _write_steps(self) -> None:
        """Append the metrics of each step since the last call to RUN/steps.jsonl."""
        for step, found in self.metrics.take_steps(lambda name: not NOT_BY_STEP.match(name), self._gather):
            self.step_lines.add(step, found)

    def _gather(self, own: Any) -> list[Any]:
        """The objects of all ranks, on every rank."""
        return gather_object([own])

    def note_step(self) -> None:
        """Add the work of a step to the metrics: tokens and images of policy and reference, and seconds by phase."""
        forwards = [self.policy] if self.reference is None else [self.policy, self.reference.forward]
        for forward in forwards:
            for name, count in forward.counts.items():
                self.metrics.sum(f"work/{name}", count)
            forward.counts.clear()  # so that a reference that is the policy without its adapter is not counted twice
        for name, seconds in self.timeline.end_step(self.state.global_step + 1).items():
            self.metrics.mean(name, seconds)


class FirstAndLastLogged(TrainerCallback):
    """Logs the first and the last step, so that a run shorter than `logging_steps` is not without a log, and none ends without one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        if args.logging_strategy == "steps" and (state.global_step == 1 or is_last):
            control.should_log = True
