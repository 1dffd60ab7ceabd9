"""`boresight compare` as it is typed: own tables, part of the rows, and what cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight.cli import main
from boresight.compare import AnswerSettings, job, stored_comparison
from boresight.compare.answering import answer
from boresight.demo.tiny import build_tiny
from boresight.types import Row

SHORT = ("--max_completion_length", "3", "--batch-size", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("models") / "base", vocab_size=512))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of one's own: images, and a CSV with other names for its columns."""
    (tmp_path / "photos").mkdir()
    lines = ["photo,ask,right,level"]
    for place, colour in enumerate(("red", "green", "blue", "teal", "gray", "black")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "photos" / f"{colour}.png")
        lines.append(f"photos/{colour}.png,what colour is it?,{colour},{place % 2}")
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


OWN = (
    "--dataset", "own.csv", "--image_column", "photo", "--prompt-column", "ask", "--solution_column", "right", "--kind_column", "level",
)  # fmt: skip


def test_a_table_of_ones_own(here: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", f"a={model}", "--model", f"b={model}", *OWN, *SHORT, "--system_prompt", "Be brief."]
    assert main(["compare", *words, "--output", "out/page.html", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert "6 questions, marked by exact_answer_reward" in printed
    assert re.search(r"page: out/page.html", printed) and re.search(r"markdown: out/page.md", printed)
    found = stored_comparison(here / "out" / "page")
    assert [question.gold for question in found.questions] == ["red", "green", "blue", "teal", "gray", "black"]
    assert found.questions[0].question == "system: Be brief.\nuser: <image>what colour is it?"
    assert found.by_kind["a"].keys() == {"0", "1"}
    assert found.answers["a"] == found.answers["b"]  # the same model twice
    assert found.title == "a · b on own.csv"


def test_what_was_held_out_is_asked(here: Path, model: str) -> None:
    """Where nobody names a split: not the questions that a model learned from."""
    head, *lines = (here / "own.csv").read_text().splitlines()
    (here / "data").mkdir()
    for name, part in (("train", lines[:4]), ("test", lines[4:])):
        (here / "data" / f"{name}.csv").write_text("\n".join([head, *part]) + "\n")
    words = ["--dataset", "data", *OWN[2:], "--image_root", "."]
    assert main(["compare", "--model", model, *words, *SHORT]) == 0
    assert [question.gold for question in stored_comparison("compare").questions] == ["gray", "black"]


def test_part_of_the_rows(here: Path, model: str) -> None:
    """Rollout by the seed, in the table's order, under their own numbers."""
    rows = {}
    for seed in ("1", "1", "2"):
        assert main(["compare", "--model", model, *OWN, *SHORT, "--num_rows", "3", "--seed", seed]) == 0
        rows.setdefault(seed, []).append([question.row for question in stored_comparison("compare").questions])
    assert rows["1"][0] == rows["1"][1] != rows["2"][0]
    assert all(drawn == sorted(set(drawn)) and len(drawn) == 3 for one in rows.values() for drawn in one)


def test_the_page_anew_without_models(here: Path, model: str) -> None:
    assert main(["compare", "--model", f"a={model}", *OWN, *SHORT]) == 0
    page = here / "compare.html"
    before = page.read_text()
    page.unlink()
    assert main(["compare"]) == 0
    assert page.read_text() == before
    assert main(["compare", "--answers", "compare", "--output", "again.html", "--title", "Another"]) == 0
    assert "<h1>Another</h1>" in (here / "again.html").read_text()
    assert json.loads((here / "compare" / "comparison.json").read_text())["title"] == "a on own.csv"


def test_an_interrupt_says_what_is_kept(
    here: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the first batch of four; the same command then asks the other two."""
    asked: list[int] = []

    def interrupted(source: str, rows: list[Row], settings: AnswerSettings, **how: Any) -> Iterator[Any]:
        asked.append(len(rows))
        yield next(iter(answer(source, rows, settings, **how)))
        if len(asked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(job, "answer", interrupted)
    assert main(["compare", "--model", f"a={model}", *OWN, *SHORT]) == 130
    assert "the answers so far are kept in compare" in capsys.readouterr().err
    assert main(["compare", "--model", f"a={model}", *OWN, *SHORT]) == 0
    assert asked == [6, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "a=MODEL"], "--dataset is missing"),
        (["--model", "a=MODEL", "--dataset", "nowhere.csv"], "There is no file or folder 'nowhere.csv'"),
        (["--model", "a=no/such/model/here", *OWN], "There is no model at 'no/such/model/here'"),
        (["--model", "a=MODEL", "--model", "a=MODEL", *OWN], "Two models are called 'a'"),
        (["--model", "a=MODEL", *OWN, "--num_rows", "7"], "own.csv has 6 rows"),
        (["--model", "a=MODEL", *OWN, "--num_rows", "0"], "own.csv has 6 rows"),
        (["--model", "a=MODEL", *OWN, "--seed", "1"], "--seed has no effect"),
        (["--model", "a=MODEL", *OWN, "--top_p", "0.9"], "--top_p has no effect on greedy answers"),
        (["--model", "a=MODEL", *OWN, "--reward", "exact_reward"], "Did you mean 'exact_answer_reward'?"),
        (["--model", "a=MODEL", "--dataset", "own.csv", "--prompt_column", "aks"], "--prompt_column aks"),
        (["--model", "a=MODEL", *OWN[:6]], "6 rows have no solution"),
        (["--model", "a=MODEL", "--dataset", "geometry", "--image_root", "."], "--image_root has no effect"),
        (["--model", "a=MODEL", "--dataset", "geometry_sample", "--solution_column", "x"], "--solution_column has no effect"),
        (["--model", "a=MODEL", *OWN, "--output", "page"], "add a suffix"),
        (["--model", "a=MODEL", *OWN, "--batch_size", "0"], "batch_size=0"),
        ([], "holds no comparison"),
        (["--num_rows", "3"], "--num_rows has no effect when no model is asked"),
        (["--tools", "calculator"], "--tools has no effect when no model is asked"),
        (["--model", "a=MODEL", *OWN, "--tool_timeout", "3"], "no tool can be called"),
        (["--model", "a=MODEL", *OWN, "--tools", "calculator", "--use_vllm"], "tools are called between turns"),
        (["--prompt_column", "ask"], "--prompt_column has no effect when no model is asked"),
    ],
)  # fmt: skip
def test_bad_input_is_exit_code_2(
    here: Path, model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(word.replace("MODEL", model) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "compare.html").exists()
