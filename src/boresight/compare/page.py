"""The comparison as one HTML page: who is right how often, who fixes and who breaks what, and every question with all answers."""

from __future__ import annotations

from typing import Any

from boresight.compare.accuracy import Accuracy, Flips
from boresight.compare.comparison import (
    CALL_HEADS,
    Comparison,
    call_cells,
    interval,
    p_value,
    pass_cells,
    pass_heads,
    percent,
    points,
)
from boresight.compare.distribution import golds_of
from boresight.report.page_shell import MAX_IMAGE_SIDE, Images, packed, render_page

MANY_IMAGES = 200
SMALL_IMAGE_SIDE = 320
"""The longer side in pixels where there are more than `MANY_IMAGES`, so that a page opens at once."""


def comparison_page(comparison: Comparison) -> str:
    """The whole page. It opens from disk and loads nothing from a network."""
    shown = {name for question in comparison.questions for name in question.images}
    shown |= {
        name
        for answers in comparison.answers.values()
        for answer in answers
        for turn in answer.turns
        for name in turn["images"]
    }
    images = Images(max_side=SMALL_IMAGE_SIDE if len(shown) > MANY_IMAGES else MAX_IMAGE_SIDE)
    for name in sorted(shown):
        images.add(comparison.images / name, name=name)
    kinds = comparison.by_kind
    return render_page(
        "comparison.html.j2",
        package="boresight.compare",
        title=comparison.title,
        data={"models": list(comparison.models), "packed": packed(_questions(comparison))},
        images=images.uris,
        scripts=["comparison.js"],
        styles=["comparison.css"],
        comparison=comparison,
        models=_model_rows(comparison),
        flips=[_flip_row(pair) for pair in comparison.flips],
        blind=None if comparison.blind is None else _shown(comparison.blind) | {"found": comparison.blind},
        golds=_gold_rows(comparison),
        pass_heads=pass_heads(comparison) if comparison.passes else [],
        passes=[(name, pass_cells(found)) for name, found in comparison.passes.items()],
        right_answers=[
            (gold, percent(count / len(comparison.questions)))
            for gold, count in golds_of(comparison.questions).most_common(5)
        ],
        call_heads=CALL_HEADS,
        calls=[(name, call_cells(own)) for name, own in comparison.calls.items()],
        kinds=list(next(iter(kinds.values()), {})),
        kind_counts=_kind_counts(comparison),
        largest_side=images.max_side,
    )


def _model_rows(comparison: Comparison) -> list[dict[str, Any]]:
    against = comparison.against_first
    by_kind, means = comparison.by_kind, comparison.mean_scores
    return [
        {
            "name": name,
            "source": comparison.models[name],
            "found": found,
            **_shown(found),
            "gain": points(against[name].gain) if name in against else None,
            "p": p_value(against[name].p) if name in against else None,
            "mean": means.get(name),
            "kinds": [_shown(own) for own in by_kind.get(name, {}).values()],
            "length": comparison.mean_length[name],
            "cut": comparison.num_truncated[name],
            "bare": name in comparison.without_tools,
            "commonest": [
                (answer, percent(count / len(comparison.questions))) for answer, count in comparison.commonest[name]
            ],
        }
        for name, found in comparison.accuracies.items()
    ]


def _shown(found: Accuracy) -> dict[str, Any]:
    """An accuracy as text, and as places on a line from 0 to 100."""
    low, high = found.interval or (0.0, 0.0)
    return {
        "share": percent(found.share),
        "interval": interval(found),
        "at": None if found.share is None else round(100 * found.share, 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
    }


def _flip_row(pair: Flips) -> dict[str, Any]:
    counts = {
        "both_right": pair.both_right,
        "fixed": len(pair.fixed),
        "broken": len(pair.broken),
        "both_wrong": pair.both_wrong,
    }
    total = sum(counts.values())
    return {
        "first": pair.first,
        "second": pair.second,
        "counts": counts,
        "widths": {name: round(100 * count / total, 3) if total else 0 for name, count in counts.items()},
        "gain": points(pair.gain),
        "p": p_value(pair.p),
    }


def _gold_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """For each right answer, the accuracy of every model on its questions."""
    by_gold = comparison.by_gold
    return [
        {
            "gold": gold,
            "count": first.marked + first.unmarked,
            "shown": [_shown(own[gold]) for own in by_gold.values()],
        }
        for gold, first in next(iter(by_gold.values()), {}).items()
    ]


def _kind_counts(comparison: Comparison) -> dict[str, int]:
    kinds = [question.kind for question in comparison.questions]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _questions(comparison: Comparison) -> list[dict[str, Any]]:
    """What the script shows of every question; marks are 1, 0 or null."""
    return [
        {
            "row": question.row,
            "question": question.question,
            "gold": question.gold,
            "kind": question.kind,
            "images": list(question.images),
            "columns": {name: str(value) for name, value in question.columns.items()},
            "answers": [
                {
                    "text": answers[place].text,
                    "mark": None if (mark := comparison.marks[name][place]) is None else int(mark),
                    "score": answers[place].scores.get(comparison.reward),
                    "tokens": len(answers[place].ids),
                    "cut": answers[place].truncated,
                    "turns": list(answers[place].turns),
                    "calls": answers[place].num_calls,
                    "failed": answers[place].num_failed_calls,
                    "ended": answers[place].ended,
                }
                for name, answers in comparison.answers.items()
            ],
        }
        for place, question in enumerate(comparison.questions)
    ]
