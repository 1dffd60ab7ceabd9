"""S11: a training script for each method, short enough to read, on rows of the form that its named data set has."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"
NAMES = ["sft", "dpo", "mpo", "grpo", "gspo"]


def said(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]}]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows in the columns of llava-instruct-mix-vsft, rlaif-v_formatted and multimodal-open-r1-8k-verified."""
    image = [Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue", "white")]
    asked = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which color?"}]}]
    places = range(4)
    answered = [asked + said("assistant", f"Number {place}.") for place in places]
    forms = {
        "sft": [{"messages": answered[place], "images": [image[place]]} for place in places],
        "dpo": [
            {
                "prompt": asked,
                "chosen": said("assistant", f"It is {place}."),
                "rejected": said("assistant", "No."),
                "images": [image[place]],
            }
            for place in places
        ],
        "grpo": [{"image": image[place], "problem": "How many?", "solution": f"${place}$"} for place in places],
    }
    folder = tmp_path_factory.mktemp("rows")
    for name, records in forms.items():
        datasets.Dataset.from_list(records).save_to_disk(folder / name)
    return {name: folder / {"mpo": "dpo", "gspo": "grpo"}.get(name, name) for name in NAMES}


def run(name: str, *words: str) -> int:
    """As `python examples/scripts/NAME_vlm.py WORDS` would, in this process."""
    script = SCRIPTS / f"{name}_vlm.py"
    before, sys.argv = sys.argv, [str(script), *words]
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before
    return int(str(ended.value.code or 0))


@pytest.mark.parametrize("name", NAMES)
def test_each_script_trains_and_saves(
    name: str, model_folder: Path, rows: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--model_name_or_path",
        str(model_folder),
        "--dataset_name",
        str(rows[name]),
        "--output_dir",
        str(tmp_path),
    ]
    words += ["--max_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "4", "--use_cpu"]
    if name in ("grpo", "gspo"):  # the article's own flags, but for the engine
        words += [
            "--num_generations",
            "4",
            "--max_completion_length",
            "8",
            "--max_prompt_length",
            "2048",
            "--learning_rate",
            "1e-5",
        ]
        words += [
            "--use_peft",
            "--lora_target_modules",
            "q_proj",
            "v_proj",
            "--log_completions",
            "--gradient_checkpointing",
        ]
    assert run(name, *words) == 0
    printed = capfd.readouterr().out
    assert "boresight report" in printed
    assert ("mpo sets" in printed, "gspo sets" in printed) == (name == "mpo", name == "gspo")
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_each_script_can_be_read_at_a_glance(name: str) -> None:
    lines = (SCRIPTS / f"{name}_vlm.py").read_text().splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 120


def test_a_script_answers_as_the_command_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("sft", "--model_name_or_path", str(tmp_path), "--learning_rat", "1") == 2
    assert "sft_vlm.py has no option --learning_rat. Did you mean --learning_rate?" in capfd.readouterr().err
    assert run("gspo", "--help") == 0
    assert "usage: python" in capfd.readouterr().out
