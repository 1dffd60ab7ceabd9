"""Several models' answers to the same questions, side by side: what the page, the Markdown and the terminal show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Group as RenderGroup
from rich.console import RenderableType

from boresight.compare.accuracy import (
    Accuracy,
    Flips,
    Mark,
    PassRates,
    accuracy,
    accuracy_by_kind,
    all_flips,
    pass_rates,
)
from boresight.compare.answers import Answer, Question
from boresight.compare.distribution import accuracy_by_gold, blind_guesser, commonest


@dataclass(frozen=True)
class Comparison:
    """Questions, every model's answers, and how they are marked."""

    title: str
    models: Mapping[str, str]
    """Name → where the model was loaded from, in the order in which they are shown. The others are compared with the first."""
    reward: str
    """The reward that marks the answers."""
    right_at: float
    """The least reward of a right answer."""
    settings: Mapping[str, str]
    """How every model was asked."""
    questions: Sequence[Question]
    answers: Mapping[str, Sequence[Answer]]
    """Model → its answers in the order of the questions."""
    images: Path
    """The folder that holds the questions' images."""
    samples: Mapping[str, Sequence[Sequence[Answer]]] = field(default_factory=dict)
    """Model → question → its answers, of which `answers` has the first."""
    without_tools: Sequence[str] = ()
    """The models that answered without the tools of the others."""

    def __rich__(self) -> RenderableType:
        """Its tables, in a terminal or a notebook: `rich.print(comparison)`."""
        from boresight.compare.terminal import tables

        return RenderGroup(*tables(self))

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
        """Model → accuracy."""
        return {name: accuracy(marks) for name, marks in self.marks.items()}

    @property
    def passes(self) -> dict[str, PassRates]:
        """Model → mean accuracy and pass@k over all answers of a question; empty with one answer each."""
        marks = {name: [[self.mark(one) for one in each] for each in found] for name, found in self.samples.items()}
        return {name: pass_rates(found) for name, found in marks.items() if any(len(each) > 1 for each in found)}

    @property
    def by_kind(self) -> dict[str, dict[str, Accuracy]]:
        """Model → kind → accuracy; empty where questions have no kind, or all the same."""
        kinds = [question.kind for question in self.questions]
        if len(set(kinds)) < 2:
            return {}
        return {name: accuracy_by_kind(marks, kinds) for name, marks in self.marks.items()}

    @cached_property
    def blind(self) -> Accuracy | None:
        """The accuracy of a guesser that sees no image (`distribution.blind_guesser`)."""
        return blind_guesser(self.questions)

    @property
    def by_gold(self) -> dict[str, dict[str, Accuracy]]:
        """Model → right answer → accuracy, the right answers of most questions first; empty where there are too many, or one."""
        found = {name: accuracy_by_gold(self.questions, marks) for name, marks in self.marks.items()}
        return found if any(found.values()) else {}

    @property
    def commonest(self) -> dict[str, list[tuple[str, int]]]:
        """Model → its commonest answers, and how often it gave them."""
        return {name: commonest(answers) for name, answers in self.answers.items()}

    @property
    def flips(self) -> list[Flips]:
        """Between every two models."""
        return all_flips(self.marks)

    @property
    def against_first(self) -> dict[str, Flips]:
        """Every model but the first → its flips from the first."""
        first, *_ = self.models
        return {pair.second: pair for pair in self.flips if pair.first == first}

    @property
    def mean_scores(self) -> dict[str, float | None]:
        """Model → mean reward; empty where every reward is 0 or 1, since the mean would be the accuracy."""
        values = {
            name: [value for answer in answers if (value := answer.scores.get(self.reward)) is not None]
            for name, answers in self.answers.items()
        }
        if all(value in (0, 1) for scores in values.values() for value in scores):
            return {}
        return {name: sum(scores) / len(scores) if scores else None for name, scores in values.items()}

    @property
    def num_truncated(self) -> dict[str, int]:
        """Model → answers that reached the length limit."""
        return {name: sum(answer.truncated for answer in answers) for name, answers in self.answers.items()}

    @property
    def mean_length(self) -> dict[str, float]:
        """Model → mean tokens of an answer."""
        return {
            name: sum(len(answer.ids) for answer in answers) / len(answers) for name, answers in self.answers.items()
        }

    @cached_property
    def calls(self) -> dict[str, Calls]:
        """Model → its calls of tools; empty where no model has tools."""
        found = {name: calls_of(answers) for name, answers in self.answers.items()}
        return {name: own for name, own in found.items() if own is not None}


@dataclass(frozen=True, slots=True)
class Calls:
    """One model's calls of tools."""

    made: int
    """Failed ones included."""
    failed: int
    """Answered with an error, of whatever kind."""
    num_answers: int
    without: int
    """Answers without a call."""
    ended: int
    """Answers that ended with a call: no room for its result, or too many turns."""

    @property
    def mean(self) -> float:
        """Calls per completion."""
        return self.made / self.num_answers


def calls_of(answers: Sequence[Answer]) -> Calls | None:
    """The calls in a model's answers; None for a model without tools."""
    own = [answer for answer in answers if answer.num_calls is not None]
    if not own:
        return None
    return Calls(
        made=sum(answer.num_calls or 0 for answer in own),
        failed=sum(answer.num_failed_calls for answer in own),
        num_answers=len(own),
        without=sum(not answer.num_calls and not answer.ended for answer in own),
        ended=sum(bool(answer.ended) for answer in own),
    )


CALL_HEADS = ("calls per answer", "failed calls", "without a call", "ended with a call")
"""Headings of `call_cells`."""


def call_cells(found: Calls) -> list[str]:
    """Calls per answer, how many calls failed, and how many answers call nothing, or end with a call."""
    return [f"{found.mean:.2f}", f"{found.failed} of {found.made}", f"{found.without}", f"{found.ended}"]


BLIND = "blind guesser"
"""What the guesser that sees no image is called, beside the models."""

FLIP_COLUMNS = ("fixed", "broken", "both right", "both wrong", "points", "p")
"""Headings of `flip_cells`."""


def flip_cells(pair: Flips) -> list[str]:
    """One row of a table of flips, without the models' names."""
    counts = (len(pair.fixed), len(pair.broken), pair.both_right, pair.both_wrong)
    return [*map(str, counts), points(pair.gain), p_value(pair.p)]


def accuracy_cells(found: Accuracy) -> list[str]:
    """How many answers are right, their share, and its interval."""
    return [f"{found.right} of {found.marked}", percent(found.share), interval(found)]


def pass_heads(comparison: Comparison) -> list[str]:
    """Headings of `pass_cells`: the mean, its interval, and pass@k for each k."""
    ks = next(iter(comparison.passes.values())).at
    return ["mean accuracy", "95 % interval", *(f"pass@{k}" for k in ks)]


def pass_cells(found: PassRates) -> list[str]:
    """The mean accuracy of the samples with its interval, and pass@k for each k."""
    low, high = found.interval or (None, None)
    shown = "–" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f} %"
    return [percent(found.mean), shown, *(percent(share) for share in found.at.values())]


def num_questions(comparison: Comparison) -> str:
    """``1,000 questions``."""
    return f"{len(comparison.questions):,} question{'s' * (len(comparison.questions) != 1)}"


def percent(share: float | None) -> str:
    """``59.3 %``; an en dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(difference: float | None) -> str:
    """``+24.0``, in percentage points; an en dash for None."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def interval(found: Accuracy) -> str:
    """``56.2–62.3 %``."""
    return "–" if found.interval is None else f"{100 * found.interval[0]:.1f}–{100 * found.interval[1]:.1f} %"


def p_value(p: float) -> str:
    """Two significant digits: ``0.031``; ``<0.001`` below."""
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
