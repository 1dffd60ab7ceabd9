"""The last words of a training command."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from boresight.cli.command import Command
from boresight.cli.progress import SHOWN


def print_summary(command: Command, trainer: Any, seconds: float) -> None:
    """What was done, where it is, and what to type next."""
    folder, model = command.training.output_dir, command.model.model_name_or_path
    state = trainer.state
    kind = "adapter" if command.model.use_peft else "model"
    lines = {
        "trained": f"{state.global_step} steps in {_duration(seconds)}, {state.epoch or 0:.3g} epochs",
        "first → last log": _change(state.log_history),
        "saved": f"{folder} (the {kind}, which plain transformers loads)",
        "look at the run": f"boresight report {folder}",
        "beside the start": f"boresight compare --model base={model} --model {command.name}={folder} --dataset {_data(command)}",
    }
    console = Console(highlight=False)
    console.print()
    for title, text in lines.items():
        if text:  # a command must be copied whole, so the terminal wraps it
            console.print(f"[bold]{title:<18}[/bold]{escape(text)}", soft_wrap=True)


def _data(command: Command) -> str:
    return str(command.data.dataset_name or "DATA")


def _change(history: list[dict[str, Any]]) -> str:
    """The numbers that people watch, at the first log and at the last."""
    logs = [entry for entry in history if "loss" in entry]
    if len(logs) < 2:
        return ""
    first, last = logs[0], logs[-1]
    names = [
        name
        for name in ("loss", "reward", "rewards/accuracies", "mean_token_accuracy", "kl")
        if name in first and name in last
    ]
    return ", ".join(f"{SHOWN[name]} {first[name]:.3g} → {last[name]:.3g}" for name in names)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
