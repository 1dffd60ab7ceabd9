"""`boresight eval` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boresight.cli import main
from boresight.evaluate.job import INSTALL
from tests.evaluate.stand_in import python_that

BODY = """
for number, own in enumerate(job["passes"]):
    shutil.copytree(f"{fixtures}/base", own["folder"])
    say({"pass": number, "truncated": {}})
open(f"{here}/asked.json", "w").write(json.dumps(job))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, and a model that is none."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tables_are_printed_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "a=some/model",
        "run",
        "--tasks",
        "own_colors, own_filtered",
        "--limit",
        "4",
        "--max-completion-length",
        "9",
    ]
    assert main(["eval", *words, "--python", python_that(here, BODY), "--output_dir", "out"]) == 0
    out = capsys.readouterr().out
    assert "own_colors, without images" in out and "own_filtered, against a" in out and "exact sign test" in out
    assert out.splitlines()[-2:] == ["out/results.md", "out/results.json"]
    assert "### own\\_colors" in Path("out/results.md").read_text()
    assert json.loads(Path("out/results.json").read_text())["models"] == {"a": "some/model", "run": "run/model"}
    job = json.loads(Path("asked.json").read_text())
    assert job["tasks"] == ["own_colors", "own_filtered"] and job["limit"] == 4
    assert [own["settings"]["pretrained"] for own in job["passes"]] == ["some/model"] * 2 + ["run/model"] * 2
    assert {own["settings"]["max_completion_length"] for own in job["passes"]} == {9}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "--tasks"),
        (["run", "--tasks", ","], "There is no task: name some with --tasks"),
        (["run", "--tasks", "mme"], INSTALL),
        (["./nowhere", "--tasks", "mme"], "there is no model ./nowhere (looked in"),
        (["empty", "--tasks", "mme"], "empty holds no model and no checkpoint"),
        (["run", "run", "--tasks", "mme"], "Two models are called 'run'"),
        (["run", "--tasks", "mme", "--limit", "0"], "limit=0"),
        (["run", "--tasks", "mme", "--include_path", "nowhere"], "include_path='nowhere': there is no such folder"),
        (["run", "--tasks", "mme", "--use_vllm", "--max_pixels", "9"], "leave out min_pixels and max_pixels"),
        (["run", "--tasks", "mme", "--python", "nowhere"], "--python nowhere cannot be run"),
        (["run", "--tasks", "mme", "--temperature", "1"], "boresight eval has no option --temperature"),
        (["--tasks", "mme"], "MODEL"),
    ],
)  # fmt: skip
def test_bad_input_is_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no lmms-eval, wherever this is run
    try:
        code = main(["eval", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
