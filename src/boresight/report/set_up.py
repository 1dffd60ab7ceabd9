"""How a run was set up, for its page, and how several runs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ABOUT = {"method": "method", "base_model": "model", "adapter": "adapter", "train_dataset": "rows", "rewards": "rewards"}
"""Entries of run.json beside its options that a reader looks for → their names on the page."""

SAID_ELSEWHERE = frozenset({"output_dir", "run_name", "logging_dir", "overwrite_output_dir"})
"""Options that always differ between runs, and explain nothing."""

MISSING = "–"


def set_up_of(run_file: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of run.json that the page shows: the command, (name, value) of what was set, and of all other options.

    Args:
        run_file: the content of run.json; empty: the run has none.
    """
    options: Mapping[str, Any] = run_file.get("options", {})
    chosen = [name for name in run_file.get("set", ()) if name in options]
    return {
        "command": run_file.get("command", ""),
        "about": [[label, shown(run_file[name])] for name, label in ABOUT.items() if run_file.get(name) is not None],
        "chosen": [[name, shown(options[name])] for name in chosen],
        "others": [[name, shown(value)] for name, value in sorted(options.items()) if name not in chosen],
    }


def differing(run_files: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(name, one value for each run) of everything in which the runs' set-ups differ; a dash where a run does not have it.

    An option that only another method has is named where a run set it: that its default is missing elsewhere says nothing.
    """
    flat = [
        {label: run[name] for name, label in ABOUT.items() if name in run} | dict(run.get("options", {}))
        for run in run_files
    ]
    names = dict.fromkeys(name for run in flat for name in run)
    rows = [(name, [shown(run[name]) if name in run else MISSING for run in flat]) for name in names]
    tells = {name for run in run_files for name in run.get("set", ())} | set(ABOUT.values())
    return [
        (name, values)
        for name, values in rows
        if name not in SAID_ELSEWHERE and len(set(values)) > 1 and (MISSING not in values or name in tells)
    ]


def shown(value: Any) -> str:
    """A value of run.json as text: strings as they are, others as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
