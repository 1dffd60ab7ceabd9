"""S11: the notebooks run from their first cell to the last, and the committed copies carry what they printed and drew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert.preprocessors import ExecutePreprocessor

FOLDER = Path(__file__).parents[2] / "notebooks"

SHORT: dict[str, dict[str, Any]] = {
    "quickstart": {"SFT_STEPS": 2, "GRPO_STEPS": 2, "TRAIN_QUESTIONS": 200, "TEST_QUESTIONS": 30},
    "mpo": {"SFT_STEPS": 2, "STEPS": 2, "QUESTIONS": 24, "TEST_QUESTIONS": 24},
    "own_reward": {"SFT_STEPS": 2, "GRPO_STEPS": 2, "TEST_QUESTIONS": 60},
}
"""Notebook → values for its cell of parameters, so that a run takes seconds. No other cell is touched."""

LARGEST = 500_000


def cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def drawn(notebook: nbformat.NotebookNode) -> int:
    """How many images the cells have put out."""
    return sum("image/png" in output.get("data", {}) for cell in cells(notebook) for output in cell.outputs)


def test_all_are_here() -> None:
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == SHORT.keys()


@pytest.mark.parametrize("name", SHORT)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel and an empty folder of its own; a cell that raises fails the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = FOLDER / f"{name}.ipynb"
    notebook, committed = nbformat.read(file, 4), nbformat.read(file, 4)
    cell = parameters(notebook)
    set_here = {line.partition(" =")[0] for line in cell.source.splitlines()}
    assert set_here == SHORT[name].keys()
    cell.source = "\n".join(f"{option} = {value}" for option, value in SHORT[name].items())
    ran, _ = ExecutePreprocessor(timeout=250, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}}
    )
    assert drawn(ran) == drawn(committed)
    assert list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize("name", SHORT)
def test_the_committed_copy_shows_a_whole_run(name: str) -> None:
    """Every cell ran in order, as its code stands there; plots and images are still images wherever it is read."""
    file = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert drawn(notebook) >= 3
    assert file.stat().st_size < LARGEST
    text = file.read_text()
    assert not re.search(r"/(tmp|root|home)/", text)  # nobody's folders
