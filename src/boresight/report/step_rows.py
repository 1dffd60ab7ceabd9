"""One row for each logged step: what people watch while a run trains. metrics.jsonl and the trackers have every metric.

Rows are plain text in columns, so that they read alike in a terminal, in a notebook and in a log file. The bar below them is drawn on a
terminal only.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from boresight.report.timeline import PHASES
from boresight.report.trends import held_out_error

LABELS = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "±",
    "frac_reward_zero_std": "spread",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen": "chosen",
    "mean_token_accuracy": "token acc.",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut",
    "entropy": "entropy",
    "kl": "kl",
}
"""Metric → the heading of its column, in their order. The reward of each function follows `reward_std` where there are several."""

SPARED = ("kl", "chosen", "±", "cut", "margin", "entropy", "length", "logp s", "reward s", "other s", "accuracy")
"""Columns that a narrow terminal goes without, the first one first, after those of single reward functions."""

NOTABLE = 0.1
"""Share of a step from which a phase has a column of its own; the others are summed in `other`."""

ALWAYS = ("sample", "update")
"""Phases that have a column wherever they take any time."""

GAP = "  "

Z95 = 1.96
"""Standard errors on either side of a held-out mean that make its 95 % interval."""


def columns_of(logs: Mapping[str, Any], *, is_first: bool = False) -> dict[str, str]:
    """Heading → the value as written, of one log entry without its prefix.

    `spread` is the share of groups whose completions earn different rewards. Phases are in seconds per step. The first step's also hold
    what comes before it, so that no phase gets a column for that alone.
    """
    found: dict[str, str] = {}
    for name, label in LABELS.items():
        value = logs.get(name)
        if not isinstance(value, int | float) or (name == "loss" and "reward" in logs):
            continue
        if name == "frac_reward_zero_std":
            found[label] = f"{100 * (1 - value):.0f} %"
        elif name == "completions/clipped_ratio":
            found[label] = f"{100 * value:.0f} %"
        else:
            found[label] = number(value)
        if name == "reward_std":
            found |= reward_columns(logs)
    return found | phase_columns(logs, ALWAYS if is_first else PHASES)


def with_interval(columns: Mapping[str, str], logs: Mapping[str, Any]) -> dict[str, str]:
    """The reward's column of an evaluation with its 95 % interval: "0.42 ± 0.12"; empty where there is no reward."""
    error = held_out_error(logs)
    return {"reward": f"{columns['reward']} ± {number(Z95 * error)}"} if "reward" in columns and error else {}


def reward_columns(logs: Mapping[str, Any]) -> dict[str, str]:
    """The mean of each reward function, where there are several."""
    means = {
        name.split("/")[1].removesuffix("_reward"): number(value)
        for name, value in logs.items()
        if name.startswith("rewards/") and name.endswith("/mean")
    }
    return means if len(means) > 1 else {}


def phase_columns(logs: Mapping[str, Any], phases: Sequence[str] = PHASES) -> dict[str, str]:
    """The seconds of phases, of those that take a notable share of a step, and of all others together."""
    seconds = {
        name[len("time/") : -len("_s")]: float(value)
        for name, value in logs.items()
        if name.startswith("time/") and name.endswith("_s")
    }
    if not seconds:
        return {}
    total = sum(seconds.values())
    notable = {
        name: value
        for name, value in sorted(seconds.items(), key=lambda item: _place(item[0]))
        if name in ALWAYS * (value > 0) or (name in {*phases} - {"other"} and value >= NOTABLE * total)
    }
    return {f"{name} s": _seconds(value) for name, value in {**notable, "other": total - sum(notable.values())}.items()}


def _place(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def split_prefix(logs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an evaluation ("eval", "eval_clocks"), or "" in training, and its entries without that prefix."""
    ends = [name[: -len("_runtime")] for name in logs if name.startswith("eval") and name.endswith("_runtime")]
    ends = ends or [name[: -len("_loss")] for name in logs if name.startswith("eval") and name.endswith("_loss")]
    if not ends:
        return "", dict(logs)
    prefix = f"{ends[0]}_"
    return ends[0], {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}


def number(value: float) -> str:
    """Three digits, without an exponent between 0.001 and a million."""
    if abs(value) >= 1000:
        return f"{value:.3g}" if abs(value) >= 1e6 else f"{value:.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RowTable:
    """Sets values into columns, under headings that are repeated when a column joins.

    Args:
        width: the characters of a line; None: no limit. Columns that do not fit are left out, and the heading counts them.
    """

    def __init__(self, width: int | None = None) -> None:
        self._width = width
        self._widths: dict[str, int] = {}
        self._shown: list[str] = []

    def lines(self, values: Mapping[str, str]) -> list[str]:
        """The row's line, below a line of headings if its columns are not those of the row before."""
        known = [*self._widths, *(name for name in values if name not in self._widths)]
        order = [name for name in known if name != "left" and name != "other s"]
        order += [name for name in ("other s", "left") if name in known]
        grown = {name: max(self._widths.get(name, 5), len(name), len(values.get(name, ""))) for name in order}
        shown = self._fitting(grown)
        heading = []
        if shown != self._shown or any(grown[name] != self._widths.get(name) for name in shown):
            hidden = len(grown) - len(shown)
            heading = ["", GAP.join(f"{name:>{grown[name]}}" for name in shown) + (f" (+{hidden})" if hidden else "")]
        self._widths, self._shown = grown, shown
        return [*heading, GAP.join(f"{values.get(name, ''):>{grown[name]}}" for name in shown).rstrip()]

    def _fitting(self, widths: Mapping[str, int]) -> list[str]:
        shown = list(widths)
        named = {*LABELS.values(), "step", "left"}
        functions = [name for name in shown if name not in named and not name.endswith(" s")]
        for spared in (*reversed(functions), *SPARED):
            if (
                self._width is None
                or sum(widths[name] + len(GAP) for name in shown) + len(" (+9)") - len(GAP) <= self._width
            ):
                break
            if spared in shown:
                shown.remove(spared)
        return shown


class StepRows(ProgressCallback):
    """Prints a row at every log and every evaluation, on the first rank. Replaces what transformers prints."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.training_bar = tqdm(
            total=state.max_steps, initial=state.global_step, dynamic_ncols=True, leave=False, disable=_bar_is_off(args)
        )
        self.current_step = state.global_step
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        self._table = RowTable(width)
        self._begun, self._begun_at = time.monotonic(), state.global_step
        self._write(f"{state.max_steps} steps. Every metric of every log: {args.output_dir}/metrics.jsonl")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.is_world_process_zero and state.global_step == self._begun_at + 1 < state.max_steps:
            self._begun, self._begun_at = time.monotonic(), state.global_step  # the first step also warms up

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.prediction_bar is None and hasattr(eval_dataloader, "__len__"):
            self.prediction_bar = tqdm(
                total=len(eval_dataloader),
                leave=False,
                dynamic_ncols=True,
                disable=_bar_is_off(args),
                desc="evaluation",
            )
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "train_runtime" in logs:
            self._write(f"{state.global_step} steps done in {duration(logs['train_runtime'])}")
            return
        kind, entries = split_prefix(logs)
        step = f"{kind} {state.global_step}" if kind else f"{state.global_step}/{state.max_steps}"
        values = {"step": step, **columns_of(entries, is_first=state.global_step == 1)}
        if kind:
            values |= with_interval(values, entries)
        if not kind:
            left = self._seconds_left(state)
            values["left"] = "" if left is None else duration(left)
        for line in self._table.lines(values):
            self._write(line)

    def _seconds_left(self, state: Any) -> float | None:
        """The steps to come at the mean pace so far, evaluations and checkpoints included; None before there is a pace."""
        done = state.global_step - self._begun_at
        return (state.max_steps - state.global_step) * (time.monotonic() - self._begun) / done if done > 0 else None

    def _write(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _bar_is_off(args: Any) -> bool | None:
    """True, or None for "only where it is written to a terminal"."""
    return True if args.disable_tqdm else None


def show_rows(trainer: Trainer) -> None:
    """Print rows in place of the dictionaries that transformers prints."""
    for printed in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):  # the first is another one in a notebook
        trainer.remove_callback(printed)
    trainer.add_callback(StepRows)
