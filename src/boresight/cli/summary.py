"""The summary that a training command prints at its end."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from boresight.cli.command import Command
from boresight.data.sources import RowDataset
from boresight.options import declarations
from boresight.report.step_rows import LABELS
from boresight.terminal import printable
from boresight.tools.options import ToolOptions
from boresight.trainer.base import GroupTrainer
from boresight.trainer.loading import is_stream

MEASURED_ROWS = 64
"""Training rows whose answers are measured for the length limit of the comparison."""
DEFAULT_LIMIT = 512
"""The limit where no row can be measured; `boresight compare` has the same."""


def print_summary(command: Command, trainer: GroupTrainer[Any], seconds: float, verified: str = "") -> None:
    """Print the result, where it is saved, and the next commands.

    Args:
        verified: what was found when the saved model was loaded anew.
    """
    folder = command.training.output_dir
    state = trainer.state
    kind = "adapter" if command.adapter.use_peft else "model"
    lines = {
        "trained": f"{state.global_step} steps in {_duration(seconds)}, {state.epoch or 0:.3g} epochs",
        "first → last log": _change(state.log_history),
        "saved": f"{folder} (the {kind}, which plain transformers loads)",
        "verified": verified,
        "view the run": shlex.join(["boresight", "report", folder]),
        "compare with base": comparison(command, trainer),
    }
    console = Console(highlight=False)
    console.print()
    for title, text in lines.items():
        if text:  # soft wrapping keeps a command in one line, so that it can be copied
            console.print(f"[bold]{title:<18}[/bold]{escape(printable(text))}", soft_wrap=True)


def comparison(command: Command, trainer: GroupTrainer[Any]) -> str:
    """The command that compares the trained model with its base model, on the same kind of rows and marked as in training."""
    data, columns = command.data, command.columns
    words = ["boresight", "compare", "--model", f"base={command.model.model_name_or_path}"]
    words += ["--model", f"{command.name}={command.training.output_dir}", "--dataset", data.dataset_name or "DATA"]
    for name in ("dataset_config", "image_root", "system_prompt"):
        if (value := getattr(data, name)) is not None:
            words += [f"--{name}", value]
    for ours in ("image", "prompt"):
        if ours in columns:
            words += [f"--{ours}_column", columns[ours]]
    record = first_record(trainer)
    reward = marking_reward(command.rewards.reward_funcs or ())
    solution = solution_column(record, columns)
    if solution not in (None, "solution"):
        words += ["--solution_column", solution]
    if reward is not None:
        words += ["--reward", reward]
    words += tool_words(command)
    words += ["--max_completion_length", str(answer_limit(trainer))]
    missing: dict[str, str] = {}
    if solution is None and reward is None:
        missing["--solution_column NAME"] = "where NAME is a column with the right answers, as text"
    if has_tools(trainer) and not command.tools:
        missing["--tools TOOL"] = (
            "where TOOL is what this script passed as tools, as my_module.my_function (or --environment_factory)"
        )
    return "\n".join([" ".join([shlex.join(words), *missing]), *(f"{'':<18}{note}" for note in missing.values())])


def tool_words(command: Command) -> list[str]:
    """The options of tools, as the comparison takes them; empty for a run without tools."""
    if not command.tools:
        return []
    factory, functions = command.tools.environment_factory, command.tools.tools
    words = ["--environment_factory", factory] if factory else []
    words += ["--tools", *functions] if functions else []
    for declared in declarations(ToolOptions):
        if (value := getattr(command.training, declared.name)) != declared.default:
            words += [f"--{declared.name}", f"{value:g}"]
    return words


def has_tools(trainer: GroupTrainer[Any]) -> bool:
    """Whether the policy could call tools."""
    return bool(getattr(trainer, "environments", None))


def first_record(trainer: GroupTrainer[Any]) -> Mapping[str, Any]:
    """The first training record, its columns renamed; empty for a stream, which would be read again for it."""
    rows = trainer.train_dataset
    return {} if rows is None or is_stream(rows) or not len(rows) else rows[0]


def solution_column(record: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """The user's column with the right answers as text: the solution, the demonstration, or the preferred answer; None: there is none.

    Args:
        columns: our name → the user's, where they differ. What is renamed was text, even if it is a message by now.
    """
    for ours in ("solution", "completion", "chosen"):
        if ours in columns:
            return columns[ours]
        if isinstance(record.get(ours), str | int | float):
            return ours
    return None


def marking_reward(names: Sequence[str]) -> str | None:
    """The reward that marked the answers in training: the one that reads the solution, or the user's own; None where it is not one."""
    # Imported here, because they import torch, which a command that fails early does without.
    from boresight.rewards.check import reads_gold
    from boresight.rewards.function import BUILT_IN, load_reward

    marking = [name for name in names if reads_gold(load_reward(name))]
    own = [name for name in names if name not in BUILT_IN]
    return next((found[0] for found in (marking, own) if len(found) == 1), None)


def answer_limit(trainer: GroupTrainer[Any]) -> int:
    """Tokens that an answer may have: the limit of training, or twice the longest of the first `MEASURED_ROWS` answers, as a power of 2."""
    limit = getattr(trainer.args, "max_completion_length", None)
    if limit is not None:
        return limit
    rows = trainer.train_dataset
    if rows is None or is_stream(rows):
        return DEFAULT_LIMIT
    read = RowDataset(rows)
    items = [trainer.encode(read[index]) for index in range(min(MEASURED_ROWS, len(read)))]
    longest = max((len(each.ids) for item in items for each in getattr(item, "group", item).completions), default=0)
    return 2 ** math.ceil(math.log2(2 * max(longest, 8)))


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
