"""Several models' answers to the same questions, side by side: what a page and a table say of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from boresight.report.answers import Answer, Question
from boresight.report.marks import Accuracy, Flips, Mark, accuracy, accuracy_by_kind, all_flips

MAX_QUOTED = 3
"""Questions whose answers a Markdown table quotes."""


@dataclass(frozen=True)
class Comparison:
    """Questions, every model's answers, and how they are marked."""

    title: str
    models: Mapping[str, str]
    """Name → where it was loaded from, in the order in which they are shown. The first is what the others are measured by."""
    reward: str
    """The reward whose word makes an answer right or wrong."""
    right_at: float
    """The least reward of a right answer."""
    settings: Mapping[str, str]
    """How all of them were asked."""
    questions: Sequence[Question]
    answers: Mapping[str, Sequence[Answer]]
    """Model → its answers in the order of the questions."""
    images: Path
    """The folder that holds the questions' images."""

    @cached_property
    def marks(self) -> dict[str, list[Mark]]:
        """Model → right, wrong or unmarked, in the order of the questions."""
        return {name: [self.mark(answer) for answer in answers] for name, answers in self.answers.items()}

    def mark(self, answer: Answer) -> Mark:
        """Whether an answer is right."""
        value = answer.scores.get(self.reward)
        return None if value is None else value >= self.right_at

    @property
    def accuracies(self) -> dict[str, Accuracy]:
        return {name: accuracy(marks) for name, marks in self.marks.items()}

    @property
    def by_kind(self) -> dict[str, dict[str, Accuracy]]:
        """Model → kind → accuracy; empty where questions have no kind, or all the same."""
        kinds = [question.kind for question in self.questions]
        if len(set(kinds)) < 2:
            return {}
        return {name: accuracy_by_kind(marks, kinds) for name, marks in self.marks.items()}

    @property
    def flips(self) -> list[Flips]:
        """Between every two models."""
        return all_flips(self.marks)

    @property
    def mean_scores(self) -> dict[str, float | None]:
        """Model → mean reward, where some reward is neither 0 nor 1; else empty: it would say the accuracy again."""
        values = {
            name: [value for answer in answers if (value := answer.scores.get(self.reward)) is not None]
            for name, answers in self.answers.items()
        }
        if all(value in (0, 1) for scores in values.values() for value in scores):
            return {}
        return {name: sum(scores) / len(scores) if scores else None for name, scores in values.items()}

    @property
    def num_truncated(self) -> dict[str, int]:
        """Model → answers that the length limit ended."""
        return {name: sum(answer.truncated for answer in answers) for name, answers in self.answers.items()}

    @property
    def mean_length(self) -> dict[str, float]:
        """Model → mean tokens of an answer."""
        return {
            name: sum(len(answer.ids) for answer in answers) / len(answers) for name, answers in self.answers.items()
        }


def percent(share: float | None) -> str:
    """``59.3 %``; an en dash for nothing."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(difference: float | None) -> str:
    """``+24.0``, in percentage points."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def interval(found: Accuracy) -> str:
    """``56.2–62.3 %``."""
    return "–" if found.interval is None else f"{100 * found.interval[0]:.1f}–{100 * found.interval[1]:.1f} %"


def p_value(p: float) -> str:
    """Two digits that count: ``0.031``; ``<0.001`` below."""
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def as_markdown(comparison: Comparison, *, max_quoted: int = MAX_QUOTED) -> str:
    """The comparison as tables of Markdown, as a paper or an issue takes them.

    Args:
        comparison: what is told.
        max_quoted: of how many questions the answers are quoted: those on which models disagree come first.
    """
    parts = [f"## {_line(comparison.title)}", _summary(comparison), _accuracy_table(comparison)]
    if len(comparison.models) > 1:
        parts.append(_flip_table(comparison))
    parts += [_quoted(comparison, place) for place in _worth_quoting(comparison)[:max_quoted]]
    return "\n\n".join(parts) + "\n"


def _summary(comparison: Comparison) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in comparison.settings.items())
    unmarked = {name: found.unmarked for name, found in comparison.accuracies.items() if found.unmarked}
    left_out = ", ".join(f"{_cell(name)} {count}" for name, count in unmarked.items())
    asked = f"{len(comparison.questions):,} question{'s' * (len(comparison.questions) != 1)}"
    return (
        f"{asked}, marked by `{comparison.reward}` (right from {comparison.right_at:g}); "
        f"{settings}. Intervals: 95 %, Wilson."
        + (f" Answers without a mark, left out of all shares: {left_out}." if unmarked else "")
    )


def _accuracy_table(comparison: Comparison) -> str:
    first, *_ = comparison.models
    gains = {pair.second: pair for pair in comparison.flips if pair.first == first}
    kinds, means = comparison.by_kind, comparison.mean_scores
    kind_names = list(next(iter(kinds.values()), {}))
    against = len(comparison.models) > 1
    head = ["model", "right", "accuracy", "95 % interval"]
    head += [f"against {_cell(first)}", "p"] if against else []
    head += ["mean reward"] if means else []
    head += [_cell(kind) for kind in kind_names] + ["tokens", "cut"]
    rows = []
    for name, found in comparison.accuracies.items():
        pair = gains.get(name)
        row = [_cell(name), f"{found.right} of {found.marked}", percent(found.share), interval(found)]
        row += ["", ""] if against and pair is None else []
        row += [] if pair is None else [points(pair.gain), p_value(pair.p)]
        row += [_number(means[name])] if means else []
        row += [percent(kinds[name][kind].share) for kind in kind_names]
        row += [f"{comparison.mean_length[name]:.0f}", f"{comparison.num_truncated[name]}"]
        rows.append(row)
    return _table(head, rows)


def _flip_table(comparison: Comparison) -> str:
    rows = [
        [
            f"{_cell(pair.first)} → {_cell(pair.second)}",
            str(len(pair.fixed)),
            str(len(pair.broken)),
            str(pair.both_right),
            str(pair.both_wrong),
            points(pair.gain),
            p_value(pair.p),
        ]
        for pair in comparison.flips
    ]
    note = "p: McNemar's exact test, two-sided" + ("." if len(rows) == 1 else f", each of {len(rows)} by itself.")
    return _table(["flips", "fixed", "broken", "both right", "both wrong", "points", "p"], rows) + f"\n\n{note}"


def _worth_quoting(comparison: Comparison) -> list[int]:
    """Places of questions, those on which marks differ first, then those whose answers do."""

    def agreement(place: int) -> tuple[bool, bool, int]:
        marks = {marks[place] for marks in comparison.marks.values()}
        texts = {answers[place].text for answers in comparison.answers.values()}
        return len(marks) < 2, len(texts) < 2, place

    return sorted(range(len(comparison.questions)), key=agreement)


def _quoted(comparison: Comparison, place: int) -> str:
    question = comparison.questions[place]
    rows = [["**data set**", "", _cell(question.gold or "–")]]
    signs: dict[Mark, str] = {True: "✓", False: "✗", None: "–"}
    for name, answers in comparison.answers.items():
        rows.append([_cell(name), signs[comparison.marks[name][place]], _cell(answers[place].text)])
    images = f" ({len(question.images)} image{'s' * (len(question.images) > 1)})" if question.images else ""
    return f"**Row {question.row}**{images}: {_cell(question.question)}\n\n" + _table(["", "", "answer"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = "| " + " | ".join(head) + " |"
    rule = "|" + "|".join(" --- " for _ in head) + "|"
    return "\n".join([line, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """A text in a cell of a table, where it stands for nothing but itself: line breaks kept as such, every sign of Markdown escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]()<>#+!|~$])", r"\\\1", text.strip())
    return "<br>".join(" ".join(line.split()) for line in escaped.splitlines() if line.strip()) or "(empty)"
