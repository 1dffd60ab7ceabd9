"""lmms-eval's files, of a real run of own_task.py over four questions, cut to what is read of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boresight.errors import DataError
from boresight.evaluate.samples import Measured, read_results

from .stand_in import FIXTURES


def test_scores_of_every_kind() -> None:
    found = read_results(FIXTURES / "base")["own_colors"]
    assert found.metrics == {
        "even": Measured(1.0, {0: 1, 1: 1, 2: 1, 3: 1}),
        "length": Measured(9.0, {0: 6, 1: 5, 2: 16, 3: 9}, higher_is_better=False),
        # A question's value is a mapping with its score, and the task's is their sum.
        "rating": Measured(10.0, {0: 0.5, 1: 2.5, 2: 3.5, 3: 3.5}),
    }
    assert found.questions == {
        number: (f"what color is it? ({number})", color)
        for number, color in enumerate(("red", "green", "blue", "teal"))
    }


def test_a_question_is_marked_once_for_each_filter() -> None:
    """The file holds all questions under the first filter, then all under the second."""
    found = read_results(FIXTURES / "other")["own_filtered"]
    assert found.metrics["even (as_it_is)"] == Measured(0.25, {0: 1, 1: 0, 2: 0, 3: 0})
    assert found.metrics["length (as_it_is)"].scores == {0: 6, 1: 10, 2: 11, 3: 12}
    assert found.metrics["length (first)"] == Measured(1.0, {0: 1, 1: 1, 2: 1, 3: 1}, higher_is_better=False)
    assert len(found.metrics) == 6 and len(found.questions) == 4


def test_the_same_questions_in_every_pass() -> None:
    passes = [read_results(FIXTURES / name) for name in ("base", "base-blind", "other", "other-blind")]
    for task in ("own_colors", "own_filtered"):
        assert all(each[task].questions == passes[0][task].questions for each in passes)
    assert passes[0]["own_colors"].metrics != passes[1]["own_colors"].metrics


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lmms-eval left no results"):
        read_results(tmp_path)
    shutil.copytree(FIXTURES / "base", tmp_path / "run")
    next((tmp_path / "run").glob("*_samples_own_colors.jsonl")).unlink()
    with pytest.raises(DataError, match="the samples of own_colors are missing"):
        read_results(tmp_path / "run")
