"""The commands that a training command prints at its end run as they are printed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from boresight.cli import main
from boresight.cli.summary import marking_reward, solution_column
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its chat template renders tools."""
    folder = build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)
    processor: Any = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of four questions about images, and a reward function."""
    lines = []
    for index, row in enumerate(load_easy_vqa("train", num_rows=4, seed=3)):
        (tmp_path / f"{index}.png").write_bytes(row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes())
        question = row["prompt"][0]["content"][1]["text"]
        lines.append({"photo": f"{index}.png", "question": question, "right": row["solution"], "wrong": "zebra"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "own_rewards_of_a_test.py").write_text(
        "def short(completions, **columns):\n    return [1.0 / (1 + len(str(each))) for each in completions]\n\n\n"
        'def twice(number: int) -> int:\n    """Double.\n\n    Args:\n        number: Any.\n    """\n    return 2 * number\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES: dict[str, list[str]] = {
    "sft": ["sft", "--completion_column", "right"],
    "dpo": ["dpo", "--chosen_column", "right", "--rejected_column", "wrong"],
    "mpo": ["mpo", "--chosen_column", "right", "--rejected_column", "wrong"],
    "grpo": ["grpo", "--solution_column", "right", "--reward_funcs", "exact_answer_reward", "--num_generations", "2"],
    "tools": [
        "grpo", "--reward_funcs", "exact_answer_reward", "--solution_column", "right", "--num_generations", "2",
        "--environment_factory", "ImageTools", "--tools", "calculator", "own_rewards_of_a_test.twice",
        "--max_tool_calling_iterations", "1", "--tool_timeout", "5",
    ],
    "own reward": ["grpo", "--reward_funcs", "own_rewards_of_a_test.short", "--num_generations", "2"],
}  # fmt: skip


def options_of(command: str) -> dict[str, list[str]]:
    """Option → its words."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return found


@pytest.mark.parametrize("case", CASES)
def test_printed_commands_run(case: str, here: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = CASES[case] + ["--max_completion_length", "8"] * (CASES[case][0] == "grpo")
    data = ["--dataset_name", "rows.jsonl", "--image_column", "photo", "--prompt_column", "question"]
    common = ["--model_name_or_path", str(model_folder), "--output_dir", "run", "--max_steps", "1", "--use_cpu"]
    assert main([*words, *data, *common, "--per_device_train_batch_size", "2", "--report_to", "none"]) == 0
    printed = capsys.readouterr().out.splitlines()
    commands = [line[18:] for line in printed if line.startswith(("view the run", "compare with base"))]
    assert [shlex.split(command)[1] for command in commands] == ["report", "compare"]
    assert int(shlex.split(commands[1])[-1]) <= 32  # its length limit
    if case == "tools":
        found = options_of(commands[1])
        assert found["--environment_factory"] == ["ImageTools"]
        assert found["--tools"] == ["calculator", "own_rewards_of_a_test.twice"]
        assert (found["--max_tool_calling_iterations"], found["--tool_timeout"]) == (["1"], ["5"])
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert (here / "compare.html").exists()


def test_the_column_with_the_right_answer() -> None:
    message: list[dict[str, Any]] = [{"role": "assistant", "content": "red"}]
    assert solution_column({"solution": 4}, {}) == "solution"
    assert solution_column({"completion": message}, {"completion": "answer"}) == "answer"
    assert solution_column({"chosen": "red"}, {}) == "chosen"
    assert solution_column({"chosen": message}, {}) is None


def test_the_reward_that_marks() -> None:
    assert marking_reward(["answer_format_reward", "exact_answer_reward"]) == "exact_answer_reward"
    assert marking_reward(["answer_format_reward"]) is None
    assert marking_reward(["exact_answer_reward", "accuracy_reward"]) is None
