"""The comparison as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from boresight.compare.accuracy import Accuracy
from boresight.compare.comparison import (
    BLIND,
    CALL_HEADS,
    FLIP_COLUMNS,
    Comparison,
    accuracy_cells,
    call_cells,
    flip_cells,
    num_questions,
    p_value,
    pass_cells,
    pass_heads,
    percent,
    points,
)
from boresight.terminal import printable


def tables(comparison: Comparison) -> list[Table]:
    """Accuracies, of the first sample and of all; calls of tools; accuracies by kind and by right answer, commonest answers, and flips."""
    found = (
        accuracy_table(comparison),
        calls_table(comparison),
        samples_table(comparison),
        breakdown_table("accuracy by kind", comparison.by_kind),
        breakdown_table("accuracy by right answer", comparison.by_gold),
        answers_table(comparison),
        flip_table(comparison),
    )
    return [table for table in found if table.row_count]


def accuracy_table(comparison: Comparison) -> Table:
    """Accuracy by model."""
    first, *_ = comparison.models
    against = comparison.against_first
    head = ["model", "right", "accuracy", "95 % interval", *([f"against\n{first}", "p"] if against else [])]
    table = empty_table(head, title=f"{num_questions(comparison)}, marked by {comparison.reward}")
    for name, found in comparison.accuracies.items():
        pair = against.get(name)
        row: list[Text | str] = [as_text(name), *accuracy_cells(found)]
        row += [] if not against else ["", ""] if pair is None else [points(pair.gain), p_value(pair.p)]
        table.add_row(*row)
    if comparison.blind is not None:
        cells = accuracy_cells(comparison.blind)
        table.add_row(BLIND, *cells, *["", ""] * bool(against), style="dim")
    unmarked = sum(found.unmarked for found in comparison.accuracies.values())
    table.caption = f"{unmarked} answers without a mark are left out of all shares" if unmarked else None
    return table


def calls_table(comparison: Comparison) -> Table:
    """Calls of tools, of the models that have some."""
    table = empty_table(["calls of tools", *(head.replace(" ", "\n", 1) for head in CALL_HEADS)])
    for name, found in comparison.calls.items():
        table.add_row(as_text(name), *call_cells(found))
    return table


def samples_table(comparison: Comparison) -> Table:
    """Mean accuracy and pass@k of several samples of each question."""
    found = comparison.passes
    table = empty_table(["all samples", *(pass_heads(comparison) if found else [])])
    for name, rates in found.items():
        table.add_row(as_text(name), *pass_cells(rates))
    return table


def breakdown_table(title: str, found: Mapping[str, Mapping[str, Accuracy]]) -> Table:
    """Accuracy by kind of question, or by right answer, and by model. The models are columns, since there are fewer of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    table.add_column("questions", justify="right")
    for name in found:
        table.add_column(as_text(name), justify="right")
    for kind, first in next(iter(found.values()), {}).items():
        asked = str(first.marked + first.unmarked)
        table.add_row(as_text(kind), asked, *(percent(own[kind].share) for own in found.values()))
    return table


def answers_table(comparison: Comparison) -> Table:
    """Each model's commonest answers, whatever was asked."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    table.add_column("commonest answers", overflow="fold")
    asked = len(comparison.questions)
    for name, found in comparison.commonest.items():
        table.add_row(
            as_text(name), as_text(", ".join(f"{answer} {percent(count / asked)}" for answer, count in found))
        )
    return table


def flip_table(comparison: Comparison) -> Table:
    """Who fixed and who broke what, for every two models."""
    table = empty_table(["from → to", *FLIP_COLUMNS])
    for pair in comparison.flips:
        table.add_row(as_text(f"{pair.first} → {pair.second}"), *flip_cells(pair))
    return table


def as_text(name: object) -> Text:
    """A name as it is written: it may look like rich's markup, or hold control characters."""
    return Text(printable(name))


def empty_table(head: list[str], *, title: str | None = None, num_names: int = 1) -> Table:
    """An empty table, its first `num_names` columns of names and the others of numbers."""
    table = Table(title=None if title is None else as_text(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(as_text(name), justify="right" if place >= num_names else "left", no_wrap=True)
    return table
