"""An evaluation around the process that has lmms-eval, which a script stands in for here; test_real.py runs the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from boresight.compare import Candidate
from boresight.errors import BoresightError, ConfigError, DataError, EngineError
from boresight.evaluate import EvalSettings, evaluate
from boresight.evaluate.inside import child
from boresight.evaluate.job import INSTALL, VERSION, tables_of
from boresight.evaluate.samples import Measured, TaskResult

from .stand_in import python_that

MODELS = [Candidate("base", "some/base"), Candidate("other", "some/other")]
WRITES = """
for number, own in enumerate(job["passes"]):
    say({"pass": number, "done": 1, "total": 2})
    say({"pass": number, "done": 2, "total": 2})
    print("loading", file=sys.stderr)
    name = own["settings"]["pretrained"].split("/")[1] + ("-blind" if own["settings"]["blind"] else "")
    shutil.copytree(f"{fixtures}/{name}", own["folder"])
    say({"pass": number, "truncated": {"own_colors": number}})
"""


def test_what_is_asked_and_what_comes_back(tmp_path: Path) -> None:
    python = python_that(tmp_path, WRITES + "json.dump(job, open(f'{here}/job.json', 'w'))")
    settings = EvalSettings(("own_colors",), limit=4, system_prompt="Be brief, please.", max_completion_length=9)
    told: list[Any] = []
    (tmp_path / "out/base/blind").mkdir(parents=True)
    (tmp_path / "out/base/blind/20990101_000000_results.json").write_text("of an earlier evaluation")
    found = evaluate(MODELS, settings, tmp_path / "out", python=python, progress=lambda *told_: told.append(told_))
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["tasks"] == ["own_colors"] and (job["limit"], job["version"]) == (4, VERSION)
    assert [own["settings"]["pretrained"] for own in job["passes"]] == ["some/base"] * 2 + ["some/other"] * 2
    assert [own["settings"]["blind"] for own in job["passes"]] == [False, True] * 2
    asked = {"system_prompt": "Be brief, please.", "max_completion_length": 9, "use_vllm": False, "batch_size": 16}
    assert all(asked.items() <= own["settings"].items() for own in job["passes"])
    shown = ["base", "base, blind", "other", "other, blind"]
    assert told == [(name, done, 2) for name in shown for done in (1, 2)]
    assert (tmp_path / "out/log.txt").read_text() == "loading\n" * 4
    assert found.truncated == {"base": {"own_colors": 0}, "other": {"own_colors": 2}}
    assert found.tasks.keys() == {"own_colors", "own_filtered"}
    assert found.as_json()["models"] == {"base": "some/base", "other": "some/other"}


def test_without_blind_passes(tmp_path: Path) -> None:
    settings = EvalSettings(("own_colors",), blind=False)
    found = evaluate(MODELS[:1], settings, tmp_path / "out", python=python_that(tmp_path, WRITES))
    (score,) = found.tasks["own_colors"]["even"].values()
    assert score.blind is None and score.from_blind is None and score.from_first is None
    assert not (tmp_path / "out/base/blind").exists()


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("say({'error': 'task mme asks for beam search'}); sys.exit(2)", ConfigError, "^task mme asks for beam search$"),
        ("say({'error': 'lmms-eval failed: no disk'}); sys.exit(1)", EngineError, r"^lmms-eval failed: no disk \(.*printed: .*log.txt\)"),
        ("print('the last\\nwords', file=sys.stderr); sys.exit(3)", EngineError, r"^words \("),
        ("sys.exit(3)", EngineError, r"^exit code 3 \("),
        ("sys.exit('python: No module named boresight')", ConfigError, "has no boresight.*pins packages"),
        ("pass", DataError, "lmms-eval left no results"),
    ],
)  # fmt: skip
def test_a_process_that_fails(tmp_path: Path, body: str, kind: type[BoresightError], message: str) -> None:
    with pytest.raises(kind, match=message):
        evaluate(MODELS, EvalSettings(("mme",)), tmp_path / "out", python=python_that(tmp_path, body))


def test_what_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for candidates, how, message in (
        ([], {}, "There is no model"),
        ([MODELS[0], Candidate("base", "b")], {}, "Two models are called 'base'"),
        (MODELS, {}, f"There is no lmms-eval beside {sys.executable}. {INSTALL}"),
        (MODELS, {"python": "no/such/python"}, "--python no/such/python cannot be run: No such file"),
    ):
        with pytest.raises(ConfigError) as caught:
            evaluate(candidates, EvalSettings(("mme",)), tmp_path / "out", **how)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": ()}, "There is no task"),
        ({"tasks": ("mme", "")}, "There is no task"),
        ({"limit": 0}, "limit=0"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"include_path": "no/such/folder"}, "include_path='no/such/folder': there is no such folder"),
        ({"use_vllm": True, "max_pixels": 9}, "leave out min_pixels and max_pixels"),
    ],
)
def test_settings_outside_their_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalSettings(**{"tasks": ("mme",), **given})


def test_the_process_refuses_another_boresight_and_no_lmms_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"has boresight {VERSION}, and this is 0.0.0: install the same one there"):
        child.run({"version": "0.0.0"}, print)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ConfigError, match=r"cannot import lmms-eval .*pins packages"):
        child.run({"version": VERSION, "passes": []}, print)


def result(scores: dict[int, float], *, higher_is_better: bool = True, answers: str = "abcd") -> dict[str, TaskResult]:
    measured = Measured(sum(scores.values()), scores, higher_is_better)
    return {"own": TaskResult({"m": measured}, {number: ("?", answers[number]) for number in scores})}


def test_each_score_stands_beside_the_blind_one_and_the_first_models() -> None:
    """Of errors: fewer are better."""
    results = {
        ("a", False): result({0: 3, 1: 3, 2: 3}, higher_is_better=False),
        ("a", True): result({0: 4, 1: 4, 2: 3}, higher_is_better=False),
        ("b", False): result({0: 1, 1: 4, 2: 2}, higher_is_better=False),
        ("b", True): result({0: 0, 1: 0, 2: 0}, higher_is_better=False),
    }
    a, b = tables_of(["a", "b"], results)["own"]["m"].values()
    assert (a.value, a.blind and a.blind.value, b.value) == (9, 11, 7)
    assert a.from_blind is not None and (a.from_blind.better, a.from_blind.worse, a.from_blind.equal) == (2, 0, 1)
    assert b.from_blind is not None and (b.from_blind.better, b.from_blind.worse) == (0, 3)
    assert a.from_first is None and b.from_first is not None and (b.from_first.better, b.from_first.worse) == (2, 1)
    assert b.from_first.gain == pytest.approx(-2 / 3)


@pytest.mark.parametrize("other", [result({0: 1, 1: 1}, answers="ax"), result({0: 1})], ids=["another", "fewer"])
def test_questions_that_change_between_passes_are_not_compared(other: dict[str, TaskResult]) -> None:
    with pytest.raises(DataError, match="task own, question 1 is not the same each time"):
        tables_of(["a"], {("a", False): result({0: 1, 1: 1}), ("a", True): other})
