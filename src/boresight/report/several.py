"""`boresight report RUN1 RUN2 …`: several runs on one page, with their curves in one chart each and what they differ in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from boresight.errors import ConfigError
from boresight.files import write_whole
from boresight.report.curves import ALWAYS_SHOWN, charts, is_flat
from boresight.report.page_shell import PLOTLY, render_page
from boresight.report.run import Run, curves, read_run
from boresight.report.set_up import MISSING, differing

MAX_RUNS = 8
"""As many as there are colours for lines."""

NAME = "runs.html"


def write_comparison(
    runs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Write one page of several runs.

    Args:
        runs: the run folders, finished or not.
        output: the file; None: runs.html in the folder that holds them all.
        say: is called with one line for each damaged file.

    Raises:
        DataError: a folder holds nothing of a run.
        ConfigError: a folder is named twice, or there are more than `MAX_RUNS`; or plotly is not installed.
    """
    folders = [Path(run) for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("A run is named twice: name each run once.")
    if len(folders) > MAX_RUNS:
        raise ConfigError(f"{len(folders)} runs are more than a chart can tell apart: name at most {MAX_RUNS}.")
    read = [read_run(folder) for folder in folders]
    for text in [f"{run.name}: {text}" for run in read for text in run.damaged]:
        if say is not None:
            say(text)
    names = short_names(folders)
    page = render_page(
        "runs.html.j2",
        title=" · ".join(names) if len(names) < 4 else f"{len(names)} runs",
        data=overlaid(names, read) | {"written": time.time()},
        styles=["run.css"],
        scripts=[PLOTLY, "curves.js", "runs.js"],
        names=names,
        commands=[run.set_up.get("command", "") for run in read],
        steps=[max((line["step"] for line in (*run.metrics, *run.timeline)), default=0) for run in read],
        verdicts=[run.verdicts[-1].get("text", "") if run.verdicts else "" for run in read],
        differences=differing([run.set_up for run in read]),
        last=last_values(read),
    )
    return write_whole(output or Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / NAME, page)


def short_names(folders: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as long as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    length = next(
        num for num in range(1, max(map(len, parts)) + 1) if len({part[-num:] for part in parts}) == len({*parts})
    )
    return ["/".join(part[-length:]) for part in parts]


def overlaid(names: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    """The charts of several runs: one for each metric that any of them logged, with a line for each run that did."""
    by_run = [curves(run) for run in runs]
    metrics = dict.fromkeys(name for lines in by_run for name in lines)
    series: dict[str, Any] = {}
    found = []
    for chart in charts(metrics):
        # An evaluation's line stands beside the training's, so both have one label.
        labels = dict.fromkeys(line["label"] for line in chart["lines"])
        for label in labels:
            lines = []
            for line in (line for line in chart["lines"] if line["label"] == label):
                for place, name in enumerate(names):
                    if line["name"] in by_run[place]:
                        key = f"{place}/{line['name']}"
                        series[key] = by_run[place][line["name"]]
                        lines.append({"name": key, "label": name, "eval": line["eval"]})
            title = chart["title"] if len(labels) == 1 else f"{chart['title']}: {label}"
            last = {series[line["name"]]["values"][-1] for line in lines}
            is_same = len(last) == 1 and all(is_flat(series[line["name"]]["values"]) for line in lines)
            found.append(
                {
                    **chart,
                    "title": title,
                    "lines": lines,
                    "flat": is_same and not (chart["more"] or chart["title"] in ALWAYS_SHOWN),
                }
            )
    return {"series": series, "charts": found, "metrics_from": "metrics.jsonl"}


def last_values(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(metric, its last value in each run) of all metrics that have a chart of their own; a dash where a run does not have it."""
    by_run = [curves(run) for run in runs]
    known = charts(dict.fromkeys(name for lines in by_run for name in lines))
    names = [line["name"] for chart in known if not chart["more"] for line in chart["lines"]]
    return [(name, [_last(lines, name) for lines in by_run]) for name in names]


def _last(lines: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> str:
    return f"{lines[name]['values'][-1]:.4g}".replace("-", "−") if name in lines else MISSING
