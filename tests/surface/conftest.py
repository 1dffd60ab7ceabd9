"""What the article promised, tried as a user would: its code in a file of its own, only the import changed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from boresight.demo.easy_vqa import load_easy_vqa, question_text
from boresight.demo.tiny import build_tiny
from tests import forks


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("surface"), vocab_size=512)


@pytest.fixture
def run_script(tmp_path: Path, model_folder: Path) -> Callable[[str], str]:
    """Runs a script in a folder of its own and returns what it printed; MODEL is the tiny model's folder."""

    def run(source: str) -> str:
        file = tmp_path / "script.py"
        file.write_text(source)
        environment = {"MODEL": str(model_folder), "HF_HUB_OFFLINE": "1"}
        done = forks.run(str(file), cwd=tmp_path, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A user's folder: twelve images, and a table with a question and an answer about each."""
    folder = tmp_path / "shapes"
    (folder / "images").mkdir(parents=True)
    with (folder / "train.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "question", "answer"])
        for place, row in enumerate(load_easy_vqa("train", num_rows=12)):
            (folder / "images" / f"{place}.png").write_bytes(row["image"]["bytes"])
            table.writerow([f"images/{place}.png", question_text(row["prompt"]), row["solution"]])
    return folder
