"""The comparison as Markdown tables, for a paper or an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from boresight.compare.accuracy import Mark
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

MAX_QUOTED = 3
"""Questions whose answers are quoted."""


def as_markdown(comparison: Comparison, *, max_quoted: int = MAX_QUOTED) -> str:
    """Accuracies, flips, and the answers to a few questions.

    Args:
        comparison: what to show.
        max_quoted: how many questions are quoted with their answers; those on which models disagree come first.
    """
    parts = [f"## {_line(comparison.title)}", _summary(comparison), _accuracy_table(comparison)]
    if calls := comparison.calls:
        parts.append(
            as_table(["tools", *CALL_HEADS], [[as_cell(name), *call_cells(own)] for name, own in calls.items()])
        )
    if passes := comparison.passes:
        rows = [[as_cell(name), *pass_cells(rates)] for name, rates in passes.items()]
        parts.append(as_table(["all samples", *pass_heads(comparison)], rows))
    if len(comparison.models) > 1:
        parts.append(_flip_table(comparison))
    parts.append(_answers_table(comparison))
    parts += [_quoted(comparison, place) for place in _worth_quoting(comparison)[:max_quoted]]
    return "\n\n".join(parts) + "\n"


def _summary(comparison: Comparison) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in comparison.settings.items())
    unmarked = {name: found.unmarked for name, found in comparison.accuracies.items() if found.unmarked}
    left_out = ", ".join(f"{as_cell(name)} {count}" for name, count in unmarked.items())
    return (
        f"{num_questions(comparison)}, marked by `{comparison.reward}` (right from {comparison.right_at:g}); "
        f"{settings}. Intervals: 95 %, Wilson."
        + (f" Answers without a mark, left out of all shares: {left_out}." if unmarked else "")
    )


def _accuracy_table(comparison: Comparison) -> str:
    first, *_ = comparison.models
    against = comparison.against_first
    kinds, means = comparison.by_kind, comparison.mean_scores
    kind_names = list(next(iter(kinds.values()), {}))
    head = ["model", "right", "accuracy", "95 % interval"]
    head += [f"against {as_cell(first)}", "p"] if against else []
    head += ["mean reward"] if means else []
    head += [as_cell(kind) for kind in kind_names] + ["tokens", "cut"]
    rows = []
    for name, found in comparison.accuracies.items():
        pair = against.get(name)
        row = [as_cell(name), *accuracy_cells(found)]
        row += ["", ""] if against and pair is None else []
        row += [] if pair is None else [points(pair.gain), p_value(pair.p)]
        row += [_number(means[name])] if means else []
        row += [percent(kinds[name][kind].share) for kind in kind_names]
        row += [f"{comparison.mean_length[name]:.0f}", f"{comparison.num_truncated[name]}"]
        rows.append(row)
    if comparison.blind is not None:
        row = [BLIND, *accuracy_cells(comparison.blind)]
        rows.append(row + [""] * (len(head) - len(row)))
    return as_table(head, rows)


def _answers_table(comparison: Comparison) -> str:
    """Accuracy by right answer, and the commonest answers."""
    asked = len(comparison.questions)
    by_gold = comparison.by_gold
    golds = next(iter(by_gold.values()), {})
    parts = []
    if golds:
        rows = [
            [as_cell(gold), str(first.marked + first.unmarked), *(percent(own[gold].share) for own in by_gold.values())]
            for gold, first in golds.items()
        ]
        parts.append(as_table(["right answer", "questions", *map(as_cell, by_gold)], rows))
    rows = [
        [as_cell(name), as_cell(", ".join(f"{answer} {percent(count / asked)}" for answer, count in found))]
        for name, found in comparison.commonest.items()
    ]
    return "\n\n".join([*parts, as_table(["model", "commonest answers"], rows)])


def _flip_table(comparison: Comparison) -> str:
    rows = [[f"{as_cell(pair.first)} → {as_cell(pair.second)}", *flip_cells(pair)] for pair in comparison.flips]
    note = "p: McNemar's exact test, two-sided" + ("." if len(rows) == 1 else f", each of {len(rows)} by itself.")
    return as_table(["flips", *FLIP_COLUMNS], rows) + f"\n\n{note}"


def _worth_quoting(comparison: Comparison) -> list[int]:
    """Places of questions: first those whose marks differ between models, then those whose answers do."""

    def agreement(place: int) -> tuple[bool, bool, int]:
        marks = {marks[place] for marks in comparison.marks.values()}
        texts = {answers[place].transcript for answers in comparison.answers.values()}
        return len(marks) < 2, len(texts) < 2, place

    return sorted(range(len(comparison.questions)), key=agreement)


def _quoted(comparison: Comparison, place: int) -> str:
    question = comparison.questions[place]
    rows = [["**data set**", "", as_cell(question.gold or "–")]]
    signs: dict[Mark, str] = {True: "✓", False: "✗", None: "–"}
    for name, answers in comparison.answers.items():
        rows.append([as_cell(name), signs[comparison.marks[name][place]], as_cell(answers[place].transcript)])
    images = f" ({len(question.images)} image{'s' * (len(question.images) > 1)})" if question.images else ""
    return f"**Row {question.row}**{images}: {as_cell(question.question)}\n\n" + as_table(["", "", "answer"], rows)


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    line = "| " + " | ".join(head) + " |"
    rule = "|" + "|".join(" --- " for _ in head) + "|"
    return "\n".join([line, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(text: str) -> str:
    return " ".join(text.split())


def as_cell(text: str) -> str:
    """A text as literal content of a table's cell: line breaks become ``<br>``, Markdown's special characters are escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+!|~$])", r"\\\1", text.strip())
    return "<br>".join(" ".join(line.split()) for line in escaped.splitlines() if line.strip()) or "(empty)"
