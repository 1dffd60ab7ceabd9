"""The summary that a training command prints at its end."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.markup import escape

from boresight.cli.command import Command
from boresight.report.step_rows import LABELS
from boresight.trainer.base import GroupTrainer


def print_summary(command: Command, trainer: GroupTrainer[Any], seconds: float) -> None:
    """Print the result, where it is saved, and the next commands."""
    folder = command.training.output_dir
    state = trainer.state
    kind = "adapter" if command.adapter.use_peft else "model"
    lines = {
        "trained": f"{state.global_step} steps in {_duration(seconds)}, {state.epoch or 0:.3g} epochs",
        "first → last log": _change(state.log_history),
        "saved": f"{folder} (the {kind}, which plain transformers loads)",
        "view the run": shlex.join(["boresight", "report", folder]),
        "compare with base": comparison(command),
    }
    console = Console(highlight=False)
    console.print()
    for title, text in lines.items():
        if text:  # soft wrapping keeps a command in one line, so that it can be copied
            console.print(f"[bold]{title:<18}[/bold]{escape(text)}", soft_wrap=True)


def comparison(command: Command) -> str:
    """The command that compares the trained model with its base model, on the same kind of rows."""
    data, columns = command.data, dict(command.columns)
    if "completion" in columns:  # the demonstration is the right answer
        columns["solution"] = columns.pop("completion")
    words = ["boresight", "compare", "--model", f"base={command.model.model_name_or_path}"]
    words += ["--model", f"{command.name}={command.training.output_dir}", "--dataset", data.dataset_name or "DATA"]
    for name in ("dataset_config", "image_root", "system_prompt"):
        if (value := getattr(data, name)) is not None:
            words += [f"--{name}", value]
    for ours in ("image", "prompt", "solution"):
        if ours in columns:
            words += [f"--{ours}_column", columns[ours]]
    if (reward := _answer_reward(command)) is not None:
        words += ["--reward", reward]
    if (length := getattr(command.training, "max_completion_length", None)) is not None:
        words += ["--max_completion_length", str(length)]
    return shlex.join(words)


def _answer_reward(command: Command) -> str | None:
    """The reward that marked the answers in training, so that the comparison marks them alike; None where several or none did."""
    from boresight.rewards.check import (
        reads_gold,
    )  # here, because it imports torch, which a command that fails early does without
    from boresight.rewards.function import load_reward

    marking = [name for name in command.rewards.reward_funcs or () if reads_gold(load_reward(name))]
    return marking[0] if len(marking) == 1 else None


def _change(history: list[dict[str, Any]]) -> str:
    """The main metrics at the first and at the last log."""
    logs = [entry for entry in history if "loss" in entry]
    if len(logs) < 2:
        return ""
    first, last = logs[0], logs[-1]
    names = [
        name
        for name in ("loss", "reward", "rewards/accuracies", "mean_token_accuracy", "kl")
        if name in first and name in last
    ]
    return ", ".join(f"{LABELS[name]} {first[name]:.3g} → {last[name]:.3g}" for name in names)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
