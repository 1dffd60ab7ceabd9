"""Several runs on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boresight.cli import BAD_INPUT, DONE, main
from boresight.errors import ConfigError
from boresight.report import StepLines
from boresight.report.run import read_run
from boresight.report.several import last_values, overlaid, short_names, write_comparison
from tests.browser import PHONE, WIDE, opened


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "fast", tmp_path / "slow"]
    for folder, rate in zip(folders, (0.3, 0.1), strict=True):
        lines = StepLines(folder / "steps.jsonl")
        for step in range(1, 5):
            lines.add(
                step,
                {
                    "reward": rate * step,
                    "kl": 0.5,
                    "learning_rate": rate,
                    "rewards/a/mean": 1.0,
                    "rewards/b/mean": rate,
                },
            )
        logs = StepLines(folder / "metrics.jsonl")
        logs.add(4, {"reward": rate, "eval_reward": 2 * rate, **({"entropy": 1.0} if rate == 0.1 else {})})
        options = {"learning_rate": rate, "seed": 42, "output_dir": str(folder)}
        about = {"method": "GRPOTrainer", "command": f"boresight grpo --learning_rate {rate}", "options": options}
        (folder / "run.json").write_text(json.dumps(about))
    return folders


def test_each_metric_has_a_chart_with_a_line_for_each_run(runs: list[Path]) -> None:
    data = overlaid(["fast", "slow"], [read_run(run) for run in runs])
    lines = {chart["title"]: [(line["label"], line["eval"]) for line in chart["lines"]] for chart in data["charts"]}
    assert lines == {
        "Reward": [("fast", False), ("slow", False), ("fast", True), ("slow", True)],
        "Reward by function: a": [("fast", False), ("slow", False)],
        "Reward by function: b": [("fast", False), ("slow", False)],
        "KL to the reference": [("fast", False), ("slow", False)],
        "Entropy": [("slow", False)],
        "Learning rate": [("fast", False), ("slow", False)],
    }
    assert data["series"]["1/reward"] == {"steps": [1, 2, 3, 4], "values": pytest.approx([0.1, 0.2, 0.3, 0.4])}
    # Learning rates do not change, but differ; of the two, only KL says nothing.
    assert [chart["title"] for chart in data["charts"] if chart["flat"]] == ["KL to the reference"]


def test_last_values_are_of_the_same_metric_in_each_run(runs: list[Path]) -> None:
    found = dict(last_values([read_run(run) for run in runs]))
    assert (
        found["reward"] == ["1.2", "0.4"] and found["eval_reward"] == ["0.6", "0.2"] and found["entropy"] == ["–", "1"]
    )


def test_names_are_as_long_as_it_takes() -> None:
    assert short_names([Path("/a/x/grpo"), Path("/a/y/grpo")]) == ["x/grpo", "y/grpo"]
    assert short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "light"), (PHONE, "dark")])
def test_the_page_shows_what_differs(runs: list[Path], chromium: Any, width: int, scheme: Any) -> None:
    with opened(chromium, write_comparison(runs), width=width, scheme=scheme) as seen:
        page = seen.page
        assert [row.split("\t") for row in page.locator("#differences tbody tr").all_inner_texts()] == [
            ["learning_rate", "0.3", "0.1"]
        ]
        assert page.locator("#charts h3").first.inner_text() == "Reward"
        plot = page.locator("#charts .plot").first
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
        drawn = page.evaluate("document.querySelector('#charts .plot').data.map(trace => [trace.name, trace.x.length])")
        assert drawn == [["fast", 4], ["slow", 4], ["fast, evaluation", 1], ["slow, evaluation", 1]]
        assert "boresight grpo --learning_rate 0.1" in page.locator("#runs").inner_text()
        assert seen.overflow() <= 0 and seen.is_quiet, (seen.complaints, seen.requests)


def test_it_is_asked_for_by_naming_several_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, runs)]) == DONE
    assert (runs[0].parent / "runs.html").exists()
    assert main(["report", *map(str, runs), "--watch"]) == BAD_INPUT
    assert "--watch is for one run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="named twice"):
        write_comparison([runs[0], runs[0]])
    with pytest.raises(ConfigError, match="at most 8"):
        write_comparison([runs[0].parent / f"run{place}" for place in range(9)])
