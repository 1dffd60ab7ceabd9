"""Which answers a run gives beside the right ones."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from boresight.report.answers import MOST, answers_of


def table(rows: list[tuple[int, str | None, str | None, float | None]], phase: str = "train") -> pa.Table:
    """Rows of (step, right answer, answer, reward), each a group of its own."""
    step, right, answer, reward = (list(each) for each in zip(*rows, strict=True))
    return pa.table(
        {
            "step": step,
            "phase": [phase] * len(rows),
            "rank": [0] * len(rows),
            "group": list(range(len(rows))),
            "right_answer": pa.array(right, pa.string()),
            "answer": pa.array(answer, pa.string()),
            "reward": pa.array(reward, pa.float64()),
        }
    )


def test_an_answer_that_is_never_given_again() -> None:
    """Eight steps: the first two are early and the last two late. The 9 is answered early, and never late."""
    early = [(step, right, right, 1.0) for step in (1, 2) for right in ("3", "9")]
    between = [(step, "3", "nonsense", 0.0) for step in range(3, 7)]
    late = [(step, right, " 3", 0.25) for step in (7, 8) for right in ("3", "9", "9")]
    found = answers_of(table([*early, *between, *late]))
    assert found is not None and (found["early"], found["late"], found["num"]) == ("1–2", "7–8", 2)
    nine, three = found["rows"]
    assert nine == {
        "answer": "9",
        "asked": pytest.approx(4 / 6),
        "said": [0.5, 0.0],
        "right": [1.0, 0.0],
        "reward": 0.25,
        "instead": ["3", 1.0],
    }
    assert three["said"] == [0.5, 1.0] and three["right"] == [1.0, 1.0] and three["instead"] is None
    assert found["others"] == []


def test_case_and_space_do_not_count_and_answers_that_are_right_nowhere_are_listed() -> None:
    rows = [(1, "A  b", answer, 0.0) for answer in ("a B", "c", "c", "d", None)]
    found = answers_of(table(rows))
    assert found is not None
    assert found["rows"][0]["said"] == [0.2, 0.2] and found["rows"][0]["instead"] == ["c", 0.4]
    assert found["others"] == [["c", 0.4], ["d", 0.2], ["", 0.2]]


@pytest.mark.parametrize(
    "found",
    [
        table([(1, None, "3", 1.0)] * 3),
        table([(1, f"a sentence {number}", "a sentence", 0.0) for number in range(6)]),
        table([(1, "3", "3", 1.0)]).drop_columns(["right_answer"]),
    ],
    ids=["no right answers", "every answer once", "an older run"],
)
def test_where_there_is_nothing_to_count(found: Any) -> None:
    assert answers_of(found) is None


def test_a_run_that_only_evaluates_counts_its_evaluations() -> None:
    found = answers_of(table([(1, "x", "x", None), (2, "x", "y", None)], phase="eval"))
    assert found is not None and found["rows"][0]["right"] == [1.0, 0.0] and found["rows"][0]["reward"] is None


def test_only_the_commonest_are_listed() -> None:
    rows = [(1, str(number), "", 0.0) for number in range(MOST + 4) for _ in range(3 if number < MOST else 2)]
    found = answers_of(table(rows))
    assert found is not None and found["num"] == MOST + 4
    assert {row["answer"] for row in found["rows"]} == {str(number) for number in range(MOST)}
