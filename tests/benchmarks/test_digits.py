"""The comparison on digits: its rows are fixed, it runs, and both sides learn the same from the same completions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import digits

    return digits


def test_rows_are_split_the_same_at_every_call(digits: Any) -> None:
    train, test = digits.split_rows(32)
    assert (len(train), len(test)) == (1497, 300)
    assert digits.split_rows(32) == (train, test)
    few, fewer = digits.split_rows(32, 60)
    assert (len(few), len(fewer)) == (60, 20)
    assert all(row in train for row in few) and all(row in test for row in fewer)


def test_a_schedule_is_whole_epochs_and_depends_on_the_seed(digits: Any) -> None:
    train, _ = digits.split_rows(32, 30)
    chosen = digits.scheduled(train, 2 * len(train), 1)
    first, second = chosen[: len(train)], chosen[len(train) :]
    for epoch in (first, second):
        assert sorted(row["image"]["path"] for row in epoch) == sorted(row["image"]["path"] for row in train)
    assert first != second
    assert digits.scheduled(train, 5, 1) == chosen[:5] != digits.scheduled(train, 5, 2)


@pytest.mark.parametrize("side", ["boresight", "trl"])
def test_a_quick_run_logs_what_it_measured(digits: Any, side: str, tmp_path: Path) -> None:
    (found,) = digits.main(["--quick", "--sides", side, "--output-dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / f"{side}_0.jsonl").read_text().splitlines()]
    assert lines == found.lines
    assert [line["step"] for line in lines] == [0, 2, 3]
    assert lines[0]["divergence"] == pytest.approx(0, abs=1e-6)
    assert set(lines[0]["recall"]) <= set("0123456789")
    assert {"train/reward", "train/rewards/exact_answer_reward/mean", "train/grad_norm"} <= lines[1].keys()


def test_trl_ends_in_the_same_weights_when_given_the_same_completions(digits: Any, tmp_path: Path) -> None:
    """Whole steps: prompt ids, positions, rewards, advantages, loss, clipping, AdamW and its schedule."""
    train, _ = digits.split_rows(32, 60)
    effort = replace(digits.Effort(), steps=4, prompts=4, num_generations=8, sft_steps=40, warmup_steps=1)
    start = digits.make_start(tmp_path, train, 0, effort)
    moved, apart = digits.lockstep(start, train, 0, effort, tmp_path)
    assert moved > 0.01
    assert apart < 1e-3 * moved
