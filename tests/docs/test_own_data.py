"""docs/how-to/own-data.md as a newcomer follows it: every block in order, every command as printed, on a folder of images and a table."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForImageTextToText

from boresight.cli import main
from boresight.report import read_completions
from tests.docs.pages import ROOT, blocks, commands
from tests.docs.stand_ins import StandIns, code_of
from tests.docs.test_commands import write_files

PAGE = ROOT / "docs" / "how-to" / "own-data.md"

SHORT = {
    "sft": ["--max_steps", "2"],
    "grpo": ["--max_steps", "1", "--num_prompts_per_step", "2", "--max_completion_length", "8"],
    "report": [],
    "compare": ["--num_rows", "6", "--max_completion_length", "8"],
}
"""Flags put behind a command's own, so that it takes seconds; the later of two wins."""


def test_every_step_of_the_page(stand_ins: StandIns, empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ModuleType("page").__dict__
    done = []
    write_files(PAGE, empty_folder)
    for block in blocks(PAGE):
        if block.language == "python":
            exec(code_of(block, stand_ins), names)
        for words in commands(block) if block.language == "bash" else []:
            program, command, *rest = stand_ins.in_words(words)
            if program == "pip":
                continue
            assert program == "boresight"
            returned = main([command, *rest, *SHORT[command]])
            assert returned == 0, f"{block.where}: {' '.join(words)}\n{capsys.readouterr().err[-2000:]}"
            done.append(command)
    assert done == ["sft", "grpo", "report", "compare", "grpo"]

    printed = capsys.readouterr().out
    assert "exact_answer_reward gives full marks to all 256 gold answers" in printed
    for run in ("runs/sft", "runs/grpo"):
        AutoModelForImageTextToText.from_pretrained(empty_folder / run)
    first = read_completions("runs/grpo").to_pylist()[0]
    assert first["prompt"].count("<image>") == 1
    assert {"rewards/answer_format_reward", "rewards/exact_answer_reward"} <= first.keys()
    (report,) = Path("runs/grpo").glob("*.html")
    assert "exact_answer_reward" in report.read_text()
    comparison = Path("compare.html").read_text()
    assert all(name in comparison for name in ("base", "sft", "grpo"))


def test_a_wrong_column_is_answered_with_those_that_are_there(
    stand_ins: StandIns, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("mydata") / "images").mkdir(parents=True)
    Path("mydata/train.csv").write_text("photo,question,answer\nimages/0.png,what colour?,red\n")
    model = stand_ins.texts["Qwen/Qwen2.5-VL-3B-Instruct"]
    words = [
        "sft",
        "--model_name_or_path",
        model,
        "--dataset_name",
        "mydata",
        "--prompt_column",
        "qestion",
        "--completion_column",
        "answer",
    ]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "photo, question, answer" in message and "Did you mean 'question'" in message
