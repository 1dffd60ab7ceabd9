"""How `objectives.py` shows what it found: tables, and held-out accuracy as a plot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import unquote

from contest import METHODS, Run
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """Texts in rows and columns, for a terminal and for a page."""

    name: str
    """Of the place in a page where it belongs."""
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(runs: Sequence[Run]) -> Table:
    """Every run: accuracy over the steps, its last with the 95 % interval, and colour questions alone."""
    steps = _some(runs[0].steps, 6)
    rows = []
    for run in sorted(runs, key=_by_seed):
        end = run.result(run.steps[-1])
        low, high = end.interval
        rows.append(
            (
                str(run.seed),
                METHODS[run.method].label,
                *(f"{run.accuracy(step):.1%}" for step in steps),
                f"{low:.1%}–{high:.1%}",
                f"{run.mean_accuracy:.1%}",
                f"{end.by_kind['color']:.0%}",
            )
        )
    times = ["start", *(f"step {step}" for step in steps[1:])]
    return Table("accuracy", "Held-out accuracy", ("seed", "method", *times, "95 % interval", "mean", "colour"), rows)


def summary_table(runs: Sequence[Run]) -> Table:
    """Every method over its seeds, and against GRPO from the same checkpoint."""
    rows = []
    for method, own in _by_method(runs).items():
        finals = [run.accuracy(run.steps[-1]) for run in own]
        rows.append(
            (
                METHODS[method].label,
                str(len(own)),
                f"{mean(finals):.1%}",
                f"{min(finals):.1%}–{max(finals):.1%}",
                _differences(own, runs, lambda run: run.accuracy(run.steps[-1])),
                f"{mean(run.mean_accuracy for run in own):.1%}",
                _differences(own, runs, lambda run: run.mean_accuracy),
            )
        )
    return Table(
        "summary",
        "Over the seeds",
        (
            "method",
            "seeds",
            "at the end",
            "range",
            "against GRPO, by seed",
            "mean over the run",
            "against GRPO, by seed",
        ),
        rows,
    )


def compute_table(runs: Sequence[Run]) -> Table:
    """What each method cost: means over its seeds, but of seconds the least, which other work on the machine has added least to."""
    rows = []
    for method, own in _by_method(runs).items():
        work = {name: mean(run.work[name] for run in own) for name in own[0].work}
        clipped = [entry["clip_ratio/region_mean"] for run in own for entry in run.logs.values() if CLIPPED in entry]
        rows.append(
            (
                METHODS[method].label,
                f"{work['completions']:,.0f}",
                f"{(work['tokens'] - work['gradient_tokens']) / 1e6:.2f} M",
                f"{work['gradient_tokens'] / 1e6:.2f} M",
                f"{work['encodes']:,.0f}",
                f"{min(run.cpu_s for run in own):.0f}",
                f"{mean(clipped):.1%}" if clipped else "",
            )
        )
    return Table(
        "cost",
        "What it cost, mean of the seeds",
        (
            "method",
            "completions",
            "tokens without gradient",
            "tokens with gradient",
            "images encoded",
            "seconds of one core, least",
            "clipped",
        ),
        rows,
    )


CLIPPED = "clip_ratio/region_mean"


def tables(runs: Sequence[Run]) -> list[Table]:
    return [summary_table(runs), accuracy_table(runs), compute_table(runs)]


def print_tables(runs: Sequence[Run], console: Console) -> None:
    for table in tables(runs):
        shown = RichTable(title=table.title)
        for number, name in enumerate(table.columns):
            shown.add_column(name, justify="left" if number == 0 or name == "method" else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def write_tables(runs: Sequence[Run], page: Path) -> None:
    """Put each table between `<!-- its name -->` and `<!-- end -->` of a Markdown page, in place of what stands there.

    Raises:
        ValueError: the page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    for table in tables(runs):
        before, begin, rest = text.partition(f"<!-- {table.name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise ValueError(f"{page} has no place for a table: write <!-- {table.name} --> and <!-- end --> into it.")
        text = f"{before}{begin}\n{table.markdown()}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def _by_seed(run: Run) -> tuple[int, int]:
    return run.seed, list(METHODS).index(run.method)


def _by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each method, by seed; methods that were not run are left out."""
    found = {
        method: sorted((run for run in runs if run.method == method), key=lambda run: run.seed) for method in METHODS
    }
    return {method: own for method, own in found.items() if own}


def _differences(own: Sequence[Run], runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    """Of each seed in points, against GRPO from the same checkpoint; empty for GRPO itself and where it was not run."""
    base = {run.seed: value(run) for run in runs if run.method == "grpo"}
    pairs = [(value(run), base[run.seed]) for run in own if run.method != "grpo" and run.seed in base]
    return ", ".join(f"{100 * (theirs - grpo):+.1f}" for theirs, grpo in pairs)


def _some(steps: Sequence[int], count: int) -> list[int]:
    """At most `count` of the steps, evenly spread from the first to the last."""
    last = len(steps) - 1
    stride = next(each for each in range(1, last + 1) if last % each == 0 and last // each < count)
    return list(steps[::stride])


# ---- The plot -------------------------------------------------------------------------------------------------------------------


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write held-out accuracy over optimizer steps as SVG: a panel for each seed, and one for their mean.

    Plotly draws, in a headless browser that loads nothing.

    Raises:
        SystemExit: there is no browser.
    """
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        raise SystemExit("Drawing needs a browser: install chromium, or leave --plot out.")
    width, height = 1000, 760
    page_text = figure(runs).to_html(include_plotlyjs=True, full_html=True)
    take = f"Plotly.toImage(document.querySelector('.plotly-graph-div'), {{format: 'svg', width: {width}, height: {height}}})"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_content(page_text)
        image: str = page.evaluate(take)
        browser.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unquote(image.removeprefix("data:image/svg+xml,")) + "\n", encoding="utf-8")


def figure(runs: Sequence[Run]) -> Any:
    """The plotly figure."""
    from plotly.subplots import make_subplots

    seeds = sorted({run.seed for run in runs})
    titles = [*(f"seed {seed}" for seed in seeds), f"mean of {len(seeds)} seeds"]
    num_rows = (len(titles) + 1) // 2
    shared: Any = "all"
    chart = make_subplots(
        num_rows,
        2,
        shared_yaxes=shared,
        subplot_titles=titles,
        vertical_spacing=0.11,
        horizontal_spacing=0.04,
    )
    for method, own in _by_method(runs).items():
        for run in own:
            _add_line(chart, method, seeds.index(run.seed), run.steps, list(map(run.accuracy, run.steps)))
        if len(own) == len(seeds):
            means = [mean(run.accuracy(step) for run in own) for step in own[0].steps]
            _add_line(chart, method, len(seeds), own[0].steps, means, named=True)
    chart.update_layout(
        template="plotly_white",
        font={"family": "sans-serif", "size": 15},
        legend={"orientation": "h", "y": -0.1, "x": 0.5, "xanchor": "center"},
        margin={"l": 70, "r": 20, "t": 40, "b": 90},
    )
    chart.update_yaxes(tickformat=".0%", showline=True, linecolor="#888888")
    chart.update_xaxes(showline=True, linecolor="#888888", dtick=_some(runs[0].steps, 6)[1])
    chart.update_yaxes(title_text="held-out accuracy", col=1)
    chart.update_xaxes(title_text="optimizer step", row=num_rows)
    return chart


def _add_line(
    chart: Any, method: str, panel: int, steps: Sequence[int], shares: Sequence[float], *, named: bool = False
) -> None:
    look = METHODS[method]
    chart.add_scatter(
        x=list(steps),
        y=list(shares),
        name=look.label,
        legendgroup=method,
        showlegend=named,
        mode="lines+markers",
        line={"color": look.color, "dash": look.dash, "width": 2},
        marker={"size": 5},
        row=panel // 2 + 1,
        col=panel % 2 + 1,
    )
