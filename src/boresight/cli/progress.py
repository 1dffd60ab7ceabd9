"""A progress bar, and one line with the main metrics at every log. `trainer_state.json` has all metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from boresight.terminal import printable
from boresight.trainer.base import GroupTrainer

SHOWN = {
    "loss": "loss",
    "eval_loss": "loss",
    "reward": "reward",
    "eval_reward": "reward",
    "reward_std": "±",
    "kl": "kl",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "mean_token_accuracy": "token accuracy",
    "entropy": "entropy",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "truncated",
}
"""Metric → its label in the line, in the order of the line."""


def show_progress(trainer: GroupTrainer[Any]) -> None:
    """Replace the dictionaries that transformers prints by `progress_line`."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress())


class Progress(ProgressCallback):
    """transformers' bar, with lines that fit a terminal."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "train_runtime" not in logs:
            self.training_bar.write(progress_line(state.global_step, logs))


def progress_line(step: int, logs: Mapping[str, float]) -> str:
    """The line of one log."""
    kind = "eval" if any(name.startswith("eval_") for name in logs) else "step"
    return f"{kind} {step:>4}  " + "  ".join(_items(logs))


def _items(logs: Mapping[str, float]) -> Iterator[str]:
    for name, meaning in SHOWN.items():
        if isinstance(value := logs.get(name), int | float):
            yield f"{meaning} {_short(value)}"
    functions = {
        name.split("/")[1]: value
        for name, value in logs.items()
        if name.removeprefix("eval_").startswith("rewards/") and name.endswith("/mean")
    }
    if len(functions) > 1:
        yield from (f"{printable(name.removesuffix('_reward'))} {_short(value)}" for name, value in functions.items())


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
