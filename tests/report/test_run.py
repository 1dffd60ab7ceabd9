from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boresight.errors import DataError
from boresight.report import CompletionStore
from boresight.report.page import facts
from boresight.report.run import read_run, seconds_by_phase, series, work_done
from boresight.types import Group

NAN = float("nan")


def write_lines(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def sampled(tmp_path: Path, make_group: Callable[..., Group]) -> Path:
    """Two steps, two completions each, one of them unscored and one truncated."""
    store = CompletionStore(tmp_path)
    for step, reward in ((1, [0.0, NAN]), (2, [1.0, 0.5])):
        values = torch.tensor(reward)
        store.add(step, [make_group(["a b c", "d…"])], rewards={"exact": values}, reward=values)
    return tmp_path


def test_a_folder_that_is_no_run_is_told_where_one_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_run(tmp_path / "gone")
    with pytest.raises(DataError, match=r"none of metrics\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "grpo").mkdir()
    write_lines(tmp_path / "grpo" / "metrics.jsonl", {"step": 1, "loss": 1.0})
    with pytest.raises(DataError, match="grpo: name one of them"):
        read_run(tmp_path)


def test_curves_come_from_the_best_source_there_is(sampled: Path) -> None:
    run = read_run(sampled)
    assert "completions" in run.metrics_from
    assert run.metrics == [
        {"step": 1, "reward": 0.0, "rewards/exact/mean": 0.0, "completions/mean_length": 2.0, "completions/min_length": 1,
         "completions/max_length": 3, "completions/clipped_ratio": 0.5},
        {"step": 2, "reward": 0.75, "rewards/exact/mean": 0.75, "completions/mean_length": 2.0, "completions/min_length": 1,
         "completions/max_length": 3, "completions/clipped_ratio": 0.5},
    ]  # fmt: skip
    for step in (9, 10):
        folder = sampled / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": step, "loss": 2.0}]}))
    assert read_run(sampled).metrics == [{"step": 10, "loss": 2.0}]
    assert read_run(sampled).metrics_from == "checkpoint-10"
    write_lines(sampled / "metrics.jsonl", {"step": 2, "loss": 1.0})
    assert read_run(sampled).metrics == [{"step": 2, "loss": 1.0}]
    assert read_run(sampled).metrics_from == "metrics.jsonl"


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_run(tmp_path).metrics == [{"step": 1, "loss": 1.0}]


def test_a_curve_has_a_gap_where_there_is_no_number() -> None:
    lines = [
        {"step": 1, "loss": 2.0, "note": "x"},
        {"step": 2, "loss": None},
        {"step": 3, "loss": NAN},
        {"step": 4, "loss": 1},
    ]
    assert series(lines) == {"loss": {"steps": [1, 4], "values": [2.0, 1]}}


def test_phases_that_took_no_time_are_left_out_and_unknown_ones_are_kept() -> None:
    lines = [
        {"step": 1, "sample_s": 2.0, "update_s": 1.0, "reward_s": 0.0},
        {"step": 2, "sample_s": 3.0, "sync_s": 0.5},
    ]
    assert seconds_by_phase(lines) == {
        "steps": [1, 2],
        "phases": {"sample": [2.0, 3.0], "update": [1.0, 0.0], "sync": [0.0, 0.5]},
    }


def test_work_of_all_steps_is_added_and_what_sharing_saved_is_a_fact(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "metrics.jsonl",
        {
            "step": 1,
            "work/vision_encodes": 2,
            "work/unshared_vision_encodes": 16,
            "work/sampler_unshared_vision_encodes": 8,
        },
        {"step": 2, "work/vision_encodes": 4, "work/unshared_vision_encodes": 16},
    )
    run = read_run(tmp_path)
    assert work_done(run.metrics) == {"vision_encodes": 6, "unshared_vision_encodes": 40}
    saved = {fact["name"]: (fact["value"], fact["note"]) for fact in facts(run)}
    assert saved["image encodes saved"] == ("85%", "of 40 with nothing shared")
    assert saved["steps"] == ("2", "")
