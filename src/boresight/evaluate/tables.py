"""The scores as tables: Markdown, and in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from boresight.compare.comparison import p_value, percent, points
from boresight.compare.markdown import as_cell, as_table
from boresight.compare.terminal import as_text, empty_table
from boresight.evaluate.job import Evaluation, ModelScore
from boresight.evaluate.scores import Mean, Paired

NOTE = (
    "score: the task's own. mean: of its questions, with the 95 % interval. blind: the same questions with plain gray images. "
    "p: exact sign test over the questions, two-sided (McNemar's where a score is right or wrong), each by itself."
)
NAMES = ["metric", "model"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns about one thing."""

    title: str
    """After the task's name; empty for the scores."""
    heads: Sequence[str]
    cells: Callable[[ModelScore, bool], list[str]]
    """A model's score, and whether its means are shares → cells."""


def columns_of(evaluation: Evaluation) -> list[Columns]:
    """Scores; what the images change; what changes from the first model to the others."""
    first, *others = evaluation.models
    found = [Columns("", ("score", "questions", "mean", "95 % interval"), _score_cells)]
    if evaluation.settings.blind:
        found.append(Columns("without images", ("blind", "images help, hurt", "p"), _blind_cells))
    if others:
        heads = (f"against {first}", "better, worse", "p")
        found.append(Columns(f"against {first}", heads, _against_cells))
    return found


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
    columns = columns_of(evaluation)
    heads = [as_cell(head) for head in (*NAMES, *(head for each in columns for head in each.heads))]
    parts = ["## Benchmarks", f"{models}; {asked}."]
    for task in evaluation.tasks:
        rows = [[as_cell(cell) if cell else "" for cell in row] for row in rows_of(evaluation, task, columns)]
        parts += [f"### {as_cell(task)}", as_table(heads, rows)]
        if note := truncation(evaluation, task):
            parts.append(as_cell(note))
    return "\n\n".join([*parts, NOTE]) + "\n"


def terminal_tables(evaluation: Evaluation) -> Iterator[Table]:
    """For each task a table of its scores, one of the blind scores and one against the first model: together they are too wide."""
    for task in evaluation.tasks:
        for columns in columns_of(evaluation):
            title = f"{task}, {columns.title}" if columns.title else task
            table = empty_table([*NAMES, *columns.heads], title=title, num_names=len(NAMES))
            for column in table.columns[: len(NAMES)]:
                column.no_wrap, column.overflow = False, "fold"
            if not columns.title:
                table.caption = truncation(evaluation, task)
            for row in rows_of(evaluation, task, [columns]):
                if any(row[len(NAMES) :]):
                    table.add_row(*map(as_text, row))
            yield table


def rows_of(evaluation: Evaluation, task: str, columns: Sequence[Columns]) -> list[list[str]]:
    """A task's rows: every metric, every model."""
    rows: list[list[str]] = []
    for metric, models in evaluation.tasks[task].items():
        means = [mean for own in models.values() for each in (own, own.blind) if each and (mean := each.mean)]
        in_percent = all(mean.is_share for mean in means)
        for name, own in models.items():
            rows.append([metric, name, *(cell for each in columns for cell in each.cells(own, in_percent))])
    return rows


def truncation(evaluation: Evaluation, task: str) -> str | None:
    """A sentence about answers that were cut; None if none was."""
    found = {name: own[task] for name, own in evaluation.truncated.items() if own.get(task)}
    if not found:
        return None
    counts = ", ".join(f"{name} {count}" for name, count in found.items())
    return f"answers that reached the limit of tokens: {counts} (--max_completion_length raises it)"


def _score_cells(score: ModelScore, in_percent: bool) -> list[str]:
    own = "–" if score.value is None else f"{score.value:.4g}"
    mean = score.mean
    if mean is None:
        return [own, "–", "–", "–"]
    low, high = mean.interval or (None, None)
    if low is None or high is None:
        shown = "–"
    elif in_percent:
        shown = f"{100 * low:.1f}–{100 * high:.1f} %"
    else:
        shown = f"{low:.3f} to {high:.3f}".replace("-", "−")
    return [own, f"{mean.asked}", _value(mean, in_percent), shown]


def _blind_cells(score: ModelScore, in_percent: bool) -> list[str]:
    return [_value(score.blind and score.blind.mean, in_percent), *_pair_cells(score.from_blind)]


def _against_cells(score: ModelScore, in_percent: bool) -> list[str]:
    pair = score.from_first
    if pair is None:
        return ["", "", ""]
    gain = points(pair.gain) if in_percent else f"{pair.gain:+.3f}".replace("-", "−")
    return [gain, *_pair_cells(pair)]


def _value(mean: Mean | None, in_percent: bool) -> str:
    if mean is None:
        return "–"
    return percent(mean.value) if in_percent else f"{mean.value:.3f}".replace("-", "−")


def _pair_cells(pair: Paired | None) -> list[str]:
    """Questions that are better and worse, and p."""
    return ["", ""] if pair is None else [f"{pair.better}, {pair.worse}", p_value(pair.p)]
