"""The comparison as tables in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from boresight.compare.comparison import (
    FLIP_COLUMNS,
    Comparison,
    accuracy_cells,
    flip_cells,
    num_questions,
    p_value,
    percent,
    points,
)
from boresight.terminal import printable


def tables(comparison: Comparison) -> list[Table]:
    """Accuracies, accuracies by kind, and flips; those that have rows."""
    found = (accuracy_table(comparison), kind_table(comparison), flip_table(comparison))
    return [table for table in found if table.row_count]


def accuracy_table(comparison: Comparison) -> Table:
    """Accuracy by model."""
    first, *_ = comparison.models
    against = comparison.against_first
    head = ["model", "right", "accuracy", "95 % interval", *([f"against\n{first}", "p"] if against else [])]
    table = _table(head, title=f"{num_questions(comparison)}, marked by {comparison.reward}")
    for name, found in comparison.accuracies.items():
        pair = against.get(name)
        row: list[Text | str] = [_text(name), *accuracy_cells(found)]
        row += [] if not against else ["", ""] if pair is None else [points(pair.gain), p_value(pair.p)]
        table.add_row(*row)
    unmarked = sum(found.unmarked for found in comparison.accuracies.values())
    table.caption = f"{unmarked} answers without a mark are left out of all shares" if unmarked else None
    return table


def kind_table(comparison: Comparison) -> Table:
    """Accuracy by kind of question and model. Kinds are rows, since there may be many."""
    by_kind = comparison.by_kind
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("accuracy by kind")
    for name in by_kind:
        table.add_column(_text(name), justify="right")
    for kind in next(iter(by_kind.values()), {}):
        table.add_row(_text(kind), *(percent(own[kind].share) for own in by_kind.values()))
    return table


def flip_table(comparison: Comparison) -> Table:
    """Who fixed and who broke what, for every two models."""
    table = _table(["from → to", *FLIP_COLUMNS])
    for pair in comparison.flips:
        table.add_row(_text(f"{pair.first} → {pair.second}"), *flip_cells(pair))
    return table


def _text(name: object) -> Text:
    """A name as it is written: it may look like rich's markup, or hold control characters."""
    return Text(printable(name))


def _table(head: list[str], *, title: str | None = None) -> Table:
    """An empty table, its first column of names and the others of numbers."""
    table = Table(title=None if title is None else _text(title), box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(_text(name), justify="right" if place else "left", no_wrap=True)
    return table
