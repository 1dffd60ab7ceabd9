"""What the comparison of objectives refuses, adds up and shows; and that its page shows the figures beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "objectives.md"
FIGURES = ROOT / "docs" / "assets" / "objectives.json"


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import contest

    return contest


@pytest.fixture
def curves(contest: Any) -> Any:
    import curves

    return curves


def run_of(contest: Any, method: str, seed: int, *right: int) -> Any:
    """A run that was asked 50 questions at steps 0, 4, 8, …, and got so many colours right; 10 shapes each time."""
    return contest.Run(
        seed=seed,
        method=method,
        settings={"steps": 4},
        asked={"color": 40, "shape": 10},
        right={str(4 * place): {"color": number, "shape": 10} for place, number in enumerate(right)},
        work={"completions": 96, "tokens": 5_000_000, "gradient_tokens": 2_000_000 + seed * 1_000_000, "encodes": 7},
        logs={"4": {"clip_ratio/region_mean": 0.25}} if method == "gspo" else {"4": {"reward": 1.0}},
        cpu_s=10.0 + seed,
    )


def test_methods_are_their_presets_and_only_gspo_learns_from_stale_completions(contest: Any) -> None:
    from boresight import GRPOConfig
    from boresight.trainer.presets import preset

    for name, method in contest.METHODS.items():
        plan = GRPOConfig(
            output_dir="unused",
            use_cpu=True,
            num_prompts_per_step=2,
            per_device_train_batch_size=16,
            num_generations=8,
            **method.options,
        ).step_plan()
        assert plan.rollout_period == (4 if name.startswith("gspo") else 1)
        assert plan.groups_per_step == 2
        if name != "gspo-wide":
            left_out = contest.NOT_EQUAL if name == "dapo" else ()
            assert method.options == {option: value for option, value in preset(name).items() if option not in left_out}


@pytest.mark.parametrize(
    ("options", "methods", "says"),
    [
        ({"steps": 122, "ask_every": 2}, ["rloo", "gspo"], "steps=122 is not a multiple of the 4 steps that gspo"),
        ({"steps": 120, "ask_every": 10}, ["gspo-wide"], "ask_every=10 is not a multiple of the 4"),
        ({"steps": 120, "ask_every": 50}, ["grpo"], "steps=120 must be a multiple of ask_every=50"),
        ({"steps": 121, "ask_every": 11}, ["grpo"], "more than the 3871 training questions.* 120 steps at most"),
    ],
)
def test_unequal_efforts_are_refused(contest: Any, options: dict[str, int], methods: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        contest.check_effort(contest.Effort(prompts=32, **options), methods, num_rows=3871)


def test_effort_of_the_page_is_accepted(contest: Any) -> None:
    contest.check_effort(contest.Effort(), contest.METHODS, num_rows=120 * 32)
    contest.check_effort(contest.Effort(steps=122, ask_every=2), ["grpo", "rloo"], num_rows=122 * 32)


def test_a_stopped_benchmark_goes_on_only_under_its_own_settings(contest: Any, tmp_path: Path) -> None:
    file = tmp_path / "gspo_1.json"
    settings = {"steps": 4, "options": {"epsilon": 3e-4}}
    assert contest.finished(file, settings) is None
    run = run_of(contest, "gspo", 1, 5, 15)
    run.settings = settings
    file.write_text(json.dumps(asdict(run)))
    assert contest.finished(file, settings) == run
    with pytest.raises(ValueError, match=r"gspo_1.json holds a run with other settings \(options, prompts\)"):
        contest.finished(file, {"steps": 4, "options": {"epsilon": 0.2}, "prompts": 2})


def test_tables(contest: Any, curves: Any) -> None:
    runs = [
        run_of(contest, "gspo", 1, 0, 10, 40),
        run_of(contest, "grpo", 0, 5, 10, 25),
        run_of(contest, "gspo", 0, 5, 20, 30),
        run_of(contest, "grpo", 1, 0, 30, 35),
    ]
    summary, each, cost = curves.tables(runs)
    assert summary.rows == [
        ("GRPO", "2", "80.0%", "70.0%–90.0%", "", "70.0%", ""),
        ("GSPO, 4 steps", "2", "90.0%", "80.0%–100.0%", "+10.0, +10.0", "70.0%", "+15.0, -15.0"),
    ]
    assert [row[:2] for row in each.rows] == [
        ("0", "GRPO"),
        ("0", "GSPO, 4 steps"),
        ("1", "GRPO"),
        ("1", "GSPO, 4 steps"),
    ]
    # 35 of 50 by Wilson: 56.2 % to 80.9 %.
    assert each.rows[0][2:] == ("30.0%", "40.0%", "70.0%", "56.2%–80.9%", "55.0%", "62%")
    assert cost.rows[1] == ("GSPO, 4 steps", "96", "2.50 M", "2.50 M", "7", "10", "25.0%")
    assert cost.rows[0][-1] == ""
    assert each.markdown().splitlines()[1:3] == [
        "|" + " --- |" * len(each.columns),
        "| 0 | GRPO | 30.0% | 40.0% | 70.0% | 56.2%–80.9% | 55.0% | 62% |",
    ]


def test_tables_find_their_places_in_a_page(contest: Any, curves: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    places = [f"<!-- {name} -->\n\nold\n\n<!-- end -->\n" for name in ("cost", "accuracy", "summary")]
    page.write_text("words\n" + "more words\n".join(places))
    first, second = ([run_of(contest, "grpo", 0, 5, number)] for number in (10, 30))
    curves.write_tables(first, page)
    once = page.read_text()
    curves.write_tables(second, page)
    curves.write_tables(first, page)
    assert page.read_text() == once
    assert "old" not in once
    assert once.count("words\n") == 3
    assert all(f"<!-- {table.name} -->\n\n{table.markdown()}\n\n<!-- end -->" in once for table in curves.tables(first))
    page.write_text("<!-- summary -->\n")
    with pytest.raises(ValueError, match="no place for a table"):
        curves.write_tables(first, page)


def test_page_shows_the_figures_beside_it(contest: Any, curves: Any) -> None:
    runs = [contest.Run(**record) for record in json.loads(FIGURES.read_text())]
    page = PAGE.read_text()
    for table in curves.tables(runs):
        assert table.markdown() in page, f"{PAGE.name}: {table.title}"
    for run in runs:
        assert run.settings["options"] == contest.METHODS[run.method].options


def test_methods_of_a_seed_started_from_one_checkpoint(contest: Any) -> None:
    """Asked before their first step, they answered alike."""
    runs = [contest.Run(**record) for record in json.loads(FIGURES.read_text())]
    for seed in {run.seed for run in runs}:
        first = [run.right["0"] for run in runs if run.seed == seed]
        assert len(first) >= 5
        assert all(answers == first[0] for answers in first)
