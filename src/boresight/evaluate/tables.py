"""The scores as tables: Markdown, and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from boresight.compare.comparison import p_value, percent, points
from boresight.compare.markdown import as_cell, as_table
from boresight.compare.terminal import as_text, empty_table
from boresight.evaluate.job import Evaluation
from boresight.evaluate.scores import Mean, Paired

NOTE = (
    "score: the task's own. mean: of its questions, with the 95 % interval. blind: the same questions with plain gray images. "
    "p: exact sign test over the questions, two-sided (McNemar's where a score is right or wrong), each by itself."
)


def as_markdown(evaluation: Evaluation) -> str:
    """A table for each task."""
    settings = evaluation.settings
    given = {
        "engine": "vllm" if settings.use_vllm else "transformers",
        "limit": settings.limit,
        "max_completion_length": settings.max_completion_length,
        "system_prompt": settings.system_prompt,
    }
    models = ", ".join(f"{as_cell(name)} = {as_cell(source)}" for name, source in evaluation.models.items())
    asked = ", ".join(f"{name} {as_cell(str(value))}" for name, value in given.items() if value is not None)
    parts = ["## Benchmarks", f"{models}; {asked}."]
    for task in evaluation.tasks:
        rows = [[as_cell(cell) if cell else "" for cell in row] for row in rows_of(evaluation, task)]
        parts += [f"### {as_cell(task)}", as_table(heads(evaluation), rows)]
        if note := truncation(evaluation, task):
            parts.append(as_cell(note))
    return "\n\n".join([*parts, NOTE]) + "\n"


def terminal_tables(evaluation: Evaluation) -> Iterator[Table]:
    """A table for each task."""
    for task in evaluation.tasks:
        head = [name.replace(" ", "\n", 1) for name in heads(evaluation)]
        table = empty_table(head, title=task, num_names=2)
        table.caption = truncation(evaluation, task)
        for row in rows_of(evaluation, task):
            table.add_row(*map(as_text, row))
        yield table


def heads(evaluation: Evaluation) -> list[str]:
    """Headings of `rows_of`."""
    first, *others = evaluation.models
    blind = ["blind", "images help, hurt", "p"] if evaluation.settings.blind else []
    against = [f"against {first}", "better, worse", "p"] if others else []
    return ["metric", "model", "score", "questions", "mean", "95 % interval", *blind, *against]


def rows_of(evaluation: Evaluation, task: str) -> list[list[str]]:
    """A task's rows: every metric, every model."""
    rows: list[list[str]] = []
    for metric, models in evaluation.tasks[task].items():
        means = [mean for own in models.values() for each in (own, own.blind) if each and (mean := each.mean)]
        in_percent = all(mean.is_share for mean in means)
        for name, own in models.items():
            row = [metric, name, "–" if own.value is None else f"{own.value:.4g}", *_mean_cells(own.mean, in_percent)]
            if evaluation.settings.blind:
                row += [_value(own.blind and own.blind.mean, in_percent), *_pair_cells(own.from_blind)]
            if len(models) > 1:
                row += [_gain(own.from_first, in_percent), *_pair_cells(own.from_first)]
            rows.append(row)
    return rows


def truncation(evaluation: Evaluation, task: str) -> str | None:
    """A sentence about answers that were cut; None if none was."""
    found = {name: own[task] for name, own in evaluation.truncated.items() if own.get(task)}
    if not found:
        return None
    counts = ", ".join(f"{name} {count}" for name, count in found.items())
    return f"answers that reached the task's limit of tokens: {counts} (--max_completion_length raises it)"


def _mean_cells(mean: Mean | None, in_percent: bool) -> list[str]:
    if mean is None:
        return ["–", "–", "–"]
    low, high = mean.interval or (None, None)
    if low is None or high is None:
        shown = "–"
    elif in_percent:
        shown = f"{100 * low:.1f}–{100 * high:.1f} %"
    else:
        shown = f"{low:.3f} to {high:.3f}"
    return [f"{mean.asked}", _value(mean, in_percent), shown]


def _value(mean: Mean | None, in_percent: bool) -> str:
    if mean is None:
        return "–"
    return percent(mean.value) if in_percent else f"{mean.value:.3f}"


def _gain(pair: Paired | None, in_percent: bool) -> str:
    if pair is None:
        return ""
    return points(pair.gain) if in_percent else f"{pair.gain:+.3f}".replace("-", "−")


def _pair_cells(pair: Paired | None) -> list[str]:
    """Questions that are better and worse, and p."""
    return ["", ""] if pair is None else [f"{pair.better}, {pair.worse}", p_value(pair.p)]
