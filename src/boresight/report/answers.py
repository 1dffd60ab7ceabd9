"""Which answers a run gives, beside the right ones: whether it leaves one out, and which questions it learns."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

MOST = 16
"""The most right answers that a page lists."""


class Said(NamedTuple):
    """What a completion answered. Case and white space do not count."""

    right: str
    answer: str
    reward: float | None


def answers_of(table: pa.Table) -> dict[str, Any] | None:
    """Each right answer with how often it was said, how often where it was right, and what was said instead, early and late in the run.

    Early is the first quarter of the stored steps, and late the last. None where rows have no right answer, or none has the same as
    another, so that there is nothing to count.

    Args:
        table: as `read_completions` returns it.
    """
    if "right_answer" not in table.column_names:
        return None
    rows = table.filter(pc.field("phase") == ("train" if "train" in table["phase"].to_pylist() else "eval"))
    steps = sorted(set(rows["step"].to_pylist()))
    quarter = max(1, len(steps) // 4)
    parts = [_said(rows, chosen) for chosen in (steps[:quarter], steps[-quarter:])]
    asked = Counter(each.right for part in parts for each in part)
    questions = len(set(zip(*(rows[name].to_pylist() for name in ("step", "rank", "group")), strict=True)))
    if not asked or (len(asked) > 1 and len(asked) > questions / 2):
        return None
    listed = [answer for answer, _ in asked.most_common(MOST)]
    return {
        "early": f"{steps[0]}–{steps[quarter - 1]}",
        "late": f"{steps[-quarter]}–{steps[-1]}",
        "num": len(asked),
        "rows": [_line(answer, *parts) for answer in listed],
        "others": _others(parts[-1], set(asked)),
    }


def _said(rows: pa.Table, steps: Sequence[int]) -> list[Said]:
    chosen = rows.filter(pc.field("step").isin(steps))
    columns = (chosen[name].to_pylist() for name in ("right_answer", "answer", "reward"))
    return [
        Said(plain(right), plain(answer or ""), reward)
        for right, answer, reward in zip(*columns, strict=True)
        if right is not None
    ]


def _line(right: str, early: Sequence[Said], late: Sequence[Said]) -> dict[str, Any]:
    own = [each for each in late if each.right == right]
    instead = Counter(each.answer for each in own if each.answer != right).most_common(1)
    return {
        "answer": right,
        "asked": _share(each.right == right for each in late),
        "said": [_share(each.answer == right for each in part) for part in (early, late)],
        "right": [_share(each.answer == right for each in part if each.right == right) for part in (early, late)],
        "reward": _mean([each.reward for each in own]),
        "instead": [instead[0][0], instead[0][1] / len(own)] if instead else None,
    }


def _others(late: Sequence[Said], right: set[str]) -> list[list[Any]]:
    """The commonest answers that are right nowhere, with their shares."""
    counts: dict[str, int] = defaultdict(int)
    for each in late:
        if each.answer not in right:
            counts[each.answer] += 1
    commonest = sorted(counts.items(), key=lambda item: -item[1])[:5]
    return [[answer, count / len(late)] for answer, count in commonest]


def plain(text: str) -> str:
    """A text without what does not count when answers are compared."""
    return " ".join(text.casefold().split())


def _share(found: Iterable[bool]) -> float | None:
    values = list(found)
    return sum(values) / len(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
