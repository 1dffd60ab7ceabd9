"""`boresight report`: a run in one HTML file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from boresight.files import write_whole
from boresight.report.answers import answers_of
from boresight.report.browse import browsable
from boresight.report.curves import charts
from boresight.report.page_shell import PLOTLY, Images, render_page
from boresight.report.run import Run, curves, read_run, seconds_by_phase, series
from boresight.report.set_up import set_up_of
from boresight.report.tokens import TokenTexts
from boresight.report.verdicts import first_verdict

MAX_COMPLETIONS = 20_000
"""The default limit of completions in a page."""


def write_report(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    max_completions: int = MAX_COMPLETIONS,
    say: Callable[[str], object] | None = None,
) -> Path:
    """Write the page of a run. Files that cannot be read are left out and named, on the page too.

    Args:
        run: the run folder, finished or not.
        output: the file; None: RUN/report.html.
        max_completions: the most in the page. Beyond it, whole steps are left out evenly, and the page says so.
        say: is called with one line for each damaged file.

    Raises:
        DataError: the folder holds nothing of a run.
        ConfigError: plotly is not installed.
    """
    data = report_data(run, max_completions=max_completions)
    if say is not None:
        for text in data["damaged"]:
            say(text)
    return write_whole(output or Path(run) / "report.html", report_page(data))


def report_page(data: Mapping[str, Any], *, watch: bool = False) -> str:
    """The page as text.

    Args:
        data: as `report_data` returns it.
        watch: whether the page polls its own server for newer data.
    """
    return render_page(
        "run.html.j2",
        title=data["name"],
        data={**data, "images": {}, "watch": watch},
        images=data["images"],
        styles=["run.css"],
        scripts=[PLOTLY, "run.js", "set_up.js", "curves.js", "browse.js", "start.js"],
        connect=watch,
        has_completions=data["completions"] is not None,
        watch=watch,
    )


def report_data(folder: str | os.PathLike[str], *, max_completions: int = MAX_COMPLETIONS) -> dict[str, Any]:
    """The data of a run page, ready for JSON."""
    run = read_run(folder)
    images = Images()
    completions = None
    if run.completions is not None:
        texts = TokenTexts.of_run(folder)
        completions = browsable(run.completions, run=Path(folder), texts=texts, images=images, max_rows=max_completions)
    lines = curves(run)
    return {
        "name": run.name,
        "written": time.time(),
        "facts": facts(run),
        "verdicts": list(run.verdicts),
        "awaited": "" if run.verdicts else awaited_verdict(run),
        "set_up": set_up_of(run.set_up),
        "damaged": list(run.damaged),
        "metrics_from": run.metrics_from,
        "series": lines,
        "charts": charts(lines, lines),
        "timeline": seconds_by_phase(run.timeline),
        "work": dict(run.work),
        "completions": completions,
        "answers": None if run.completions is None else answers_of(run.completions),
        "images": images.uris,
    }


def facts(run: Run) -> list[dict[str, Any]]:
    """The key figures of a run: a name, a value and a note each."""
    lines = series(run.metrics)
    steps = [line["step"] for line in (*run.metrics, *run.timeline)]
    if run.completions is not None:
        steps += run.completions["step"].to_pylist()
    found = [{"name": "steps", "value": f"{max(steps, default=0):,}", "note": ""}]
    seconds = sum(value for line in run.timeline for name, value in line.items() if name != "step")
    if seconds:
        num = len(run.timeline)
        found.append({"name": "time in steps", "value": _duration(seconds), "note": f"{seconds / num:,.3g} s each"})
    for name, label in (("reward", "reward"), ("rewards/accuracies", "pairs ranked right"), ("loss", "loss")):
        if name in lines and len(found) < 3:
            first, last = lines[name]["values"][0], lines[name]["values"][-1]
            found.append(
                {"name": label, "value": _short(last), "note": f"{_short(first)} at step {lines[name]['steps'][0]:,}"}
            )
    if run.completions is not None:
        groups = f"{run.completions.group_by(['step', 'phase', 'rank', 'group']).aggregate([]).num_rows:,} groups"
        found.append({"name": "completions", "value": f"{run.completions.num_rows:,}", "note": groups})
    for done, label in (("vision_encodes", "image encodes saved"), ("prompt_tokens", "prompt tokens saved")):
        unshared = run.work.get(f"unshared_{done}", 0.0)
        if unshared:
            saved = f"{1 - run.work.get(done, 0.0) / unshared:.0%}"
            found.append({"name": label, "value": saved, "note": f"of {unshared:,.0f} with nothing shared"})
    if run.damaged:
        found.append({"name": "damaged files", "value": f"{len(run.damaged):,}", "note": "; ".join(run.damaged[:4])})
    return found


def awaited_verdict(run: Run) -> str:
    """When a run without a verdict gives its first one."""
    options = run.set_up.get("options", {})
    every = options.get("verdict_steps")
    if every == 0:
        return "verdict_steps=0: this run gives no verdicts."
    if not isinstance(every, int):
        return "This run gave no verdict."
    steps = [line["step"] for line in (*run.metrics, *run.timeline)]
    last = options.get("max_steps")
    is_short = isinstance(last, int) and 0 < last < first_verdict(every)
    when = f"at the end, at step {last}" if is_short else f"at step {first_verdict(every)}"
    return f"The first verdict comes {when}; step {max(steps, default=0):,} is done."


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
