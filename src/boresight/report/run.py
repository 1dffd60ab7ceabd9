"""Reads a run folder for its page.

| file | becomes |
|---|---|
| `metrics.jsonl` | curves and counters; without it, those of the newest checkpoint's log; without that, those of the completions |
| `steps.jsonl` | curves with a point for every step |
| `run.json` | the options and the command |
| `timeline.jsonl` | seconds of each phase of each step |
| `verdicts.jsonl` | why the run learns or does not |
| `completions/` | the browser |
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from boresight.errors import DataError
from boresight.report.completions import read_completions
from boresight.report.jsonl import read_lines
from boresight.report.timeline import PHASES

KEPT = ("metrics.jsonl", "steps.jsonl", "timeline.jsonl", "verdicts.jsonl", "completions")


@dataclass(frozen=True, slots=True)
class Run:
    """The records of a run, finished or not."""

    name: str
    metrics: Sequence[Mapping[str, Any]]
    """One entry a log line: `step` and what was logged."""
    metrics_from: str
    """A description of the file that they are from; empty where there are none."""
    steps: Sequence[Mapping[str, Any]] = ()
    """One entry an optimizer step: `step` and its metrics; none where only logs were kept."""
    set_up: Mapping[str, Any] = field(default_factory=dict)
    """What run.json says: method, data, options and, where it is known, the command."""
    timeline: Sequence[Mapping[str, Any]] = ()
    verdicts: Sequence[Mapping[str, Any]] = ()
    completions: pa.Table | None = None
    """As `read_completions` returns it; None where the method samples none."""
    damaged: Sequence[str] = ()
    """What could not be read, one text for each file."""
    work: Mapping[str, float] = field(default_factory=dict)
    """Counters summed over all logged steps, by the name after ``work/``, trainer and sampler together."""


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run folder; the run may be going on.

    Raises:
        DataError: it holds no file of a run; the message names subfolders that do.
    """
    folder = Path(folder)
    if not is_run(folder) and not _states(folder):
        raise DataError(f"{folder} is no run folder: {_where_else(folder)}")
    damaged: list[str] = []
    completions = None
    if any((folder / "completions").glob("step_*.parquet")):
        completions = read_completions(folder, damaged=damaged)
    metrics, metrics_from = _metrics(folder, completions, damaged)
    return Run(
        name=" / ".join(folder.resolve().parts[-2:]),
        metrics=metrics,
        metrics_from=metrics_from,
        steps=read_lines(folder / "steps.jsonl", damaged),
        set_up=_set_up(folder / "run.json", damaged),
        timeline=read_lines(folder / "timeline.jsonl", damaged),
        verdicts=read_lines(folder / "verdicts.jsonl", damaged),
        completions=completions,
        damaged=damaged,
        work=work_done(metrics),
    )


def is_run(folder: Path) -> bool:
    """Whether a folder holds a file of a run."""
    return any((folder / name).exists() for name in KEPT)


def series(metrics: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Name → the steps at which it was logged and its values there. Values that are not finite numbers are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in metrics:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                line_of = found.setdefault(name, {"steps": [], "values": []})
                line_of["steps"].append(line["step"])
                line_of["values"].append(value)
    return found


def curves(run: Run) -> dict[str, dict[str, list[float]]]:
    """As `series`, with a point for every step where the run kept one, and else for every log."""
    logged, by_step = series(run.metrics), series(run.steps)
    for name, line in by_step.items():
        if len(line["steps"]) >= len(logged.get(name, {"steps": []})["steps"]):
            logged[name] = line
    return logged


def seconds_by_phase(timeline: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Steps, and for each phase that took any time its seconds at each of them."""
    lines = list(timeline)
    names = [*PHASES, *dict.fromkeys(key[:-2] for line in lines for key in line if key.endswith("_s"))]
    phases = {name: [float(line.get(f"{name}_s", 0.0)) for line in lines] for name in dict.fromkeys(names)}
    return {
        "steps": [line["step"] for line in lines],
        "phases": {name: seconds for name, seconds in phases.items() if sum(seconds) > 0},
    }


def work_done(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens and images that went through the models: sums over all log lines, by the name after ``work/``."""
    total: dict[str, float] = {}
    for line in metrics:
        for name, value in line.items():
            if name.startswith("work/") and isinstance(value, int | float):
                key = name.removeprefix("work/").removeprefix("sampler_")
                total[key] = total.get(key, 0.0) + value
    return total


def _metrics(folder: Path, completions: pa.Table | None, damaged: list[str]) -> tuple[Sequence[Mapping[str, Any]], str]:
    if (folder / "metrics.jsonl").exists():
        return read_lines(folder / "metrics.jsonl", damaged), "metrics.jsonl"
    for state in reversed(_states(folder)):
        try:
            return json.loads(state.read_bytes())["log_history"], f"{state.parent.name}"
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(f"{state.parent.name}/{state.name} cannot be read")
    if completions is not None:
        return _metrics_of_completions(completions), "the completions, since the folder has no metrics.jsonl"
    return [], ""


def _set_up(path: Path, damaged: list[str]) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and isinstance(found.get("options", {}), dict):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    damaged.append(f"{path.name} cannot be read")
    return {}


def _states(folder: Path) -> list[Path]:
    """transformers' own logs in the checkpoints, the newest last."""
    found = folder.glob("checkpoint-*/trainer_state.json")
    steps = {path: path.parent.name.rpartition("-")[2] for path in found}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))


def _metrics_of_completions(table: pa.Table) -> list[dict[str, Any]]:
    """Metrics of each training step computed from its completions, under the names of the log."""
    table = table.filter(pc.field("phase") == "train")
    rewards = [name for name in table.column_names if name.startswith("rewards/")]
    # Counts of truncated completions: parquet's booleans have no mean.
    table = table.append_column("cut", pc.cast(table["truncated"], pa.float32()))
    wanted: list[Any] = [("length", "mean"), ("length", "min"), ("length", "max"), ("cut", "mean"), ("reward", "mean")]
    by_step = table.group_by("step").aggregate(wanted + [(name, "mean") for name in rewards]).sort_by("step")
    names = {f"length_{kind}": f"completions/{kind}_length" for kind in ("mean", "min", "max")}
    names |= {"cut_mean": "completions/clipped_ratio", "reward_mean": "reward", "step": "step"}
    names |= {f"{name}_mean": f"{name}/mean" for name in rewards}
    return by_step.rename_columns([names[name] for name in by_step.column_names]).to_pylist()


def _where_else(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder."
    below = sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))
    if below:
        return f"it holds {', '.join(map(str, below))}: name one of them."
    return f"it holds none of {', '.join(KEPT)}. Name the output_dir of a run."
