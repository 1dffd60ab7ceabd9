from __future__ import annotations

import json

import pytest

from boresight.report import PHASES, Timeline


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_nested_phases_are_exclusive(tmp_path):
    clock = Clock()
    timeline = Timeline(tmp_path / "run" / "timeline.jsonl", clock=clock)
    clock.now += 1
    with timeline.phase("sample"):
        clock.now += 2
        with timeline.phase("reward"):
            clock.now += 4
        clock.now += 8
    with timeline.phase("own"):
        clock.now += 16
    clock.now += 32
    seconds = timeline.end_step(3)
    zero = {f"time/{name}_s": 0.0 for name in PHASES}
    assert seconds == zero | {"time/sample_s": 10, "time/reward_s": 4, "time/own_s": 16, "time/other_s": 33}
    with timeline.phase("update"):
        clock.now += 0.5
    assert timeline.end_step(4) == zero | {"time/update_s": 0.5}
    lines = [json.loads(line) for line in (tmp_path / "run" / "timeline.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[0]["sample_s"] == 10 and lines[1] == {"step": 4, "update_s": 0.5} | {
        f"{name}_s": 0 for name in PHASES if name != "update"
    }


def test_phase_ends_with_an_exception():
    clock = Clock()
    timeline = Timeline(clock=clock)
    with pytest.raises(KeyError), timeline.phase("logp"):
        clock.now += 3
        raise KeyError
    clock.now += 5
    seconds = timeline.end_step(1)
    assert (seconds["time/logp_s"], seconds["time/other_s"]) == (3, 5)


def test_device_is_waited_for_only_when_told():
    clock = Clock()

    def synchronize():
        clock.now += 10

    timeline = Timeline(synchronize=synchronize, clock=clock)
    with timeline.phase("update"):
        clock.now += 1
    # The wait at the start is what earlier phases left running; the wait at the end is the update's own.
    assert timeline.end_step(1)["time/update_s"] == 11


def test_resumed_run_drops_later_lines(tmp_path):
    path = tmp_path / "timeline.jsonl"
    first = Timeline(path)
    first.discard_after(0)
    for step in (1, 2, 3):
        first.end_step(step)
    path.write_text(path.read_text() + '{"step": 1')
    resumed = Timeline(path)
    resumed.discard_after(2)
    resumed.end_step(3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
