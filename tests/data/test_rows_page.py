"""Every line of the tables on docs/reference/rows.md, read from the page."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from boresight.data import RowDataset, RowStream, load_rows, read_row
from boresight.errors import DataError
from boresight.types import Row

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "rows.md"
datasets.disable_progress_bars()


def lines(heading: str) -> list[tuple[str, ...]]:
    """The cells of the first table under a heading, without its head."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in row) for row in rows[1:]]


CELLS, ROWS = lines("Cells"), lines("Rows")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "red").save("a.png")


def test_the_page_has_all_its_lines() -> None:
    assert len(CELLS) >= 30 and len(ROWS) >= 36
    assert {len(line) for line in (*CELLS, *ROWS)} == {3}


def write(kind: str, cell: str) -> Path:
    """A file with a prompt, and the cell in a column `solution`; another row has a word there."""
    match kind:
        case "CSV" | "TSV":
            mark = "," if kind == "CSV" else "\t"
            path = Path(f"rows.{kind.lower()}")
            path.write_text(f"prompt{mark}solution\nq{mark}{cell}\nq{mark}word\n")
        case "JSON Lines":
            path = Path("rows.jsonl")
            path.write_text(f'{{"prompt": "q", "solution": {cell}}}\n')
        case _:
            path = Path("rows.parquet")
            pyarrow.parquet.write_table(pa.table({"prompt": ["q"], "solution": [json.loads(cell)]}), path)
    return path


@pytest.mark.parametrize(("kind", "cell", "expected"), CELLS)
def test_a_cell(kind: str, cell: str, expected: str) -> None:
    path = write(kind, cell.strip("`"))
    wanted = ast.literal_eval(expected.strip("`"))
    for row in (RowDataset(load_rows(path))[0], next(iter(RowStream(load_rows(path, streaming=True))))):  # pyright: ignore[reportArgumentType]
        assert repr(row.columns["solution"]) == repr(wanted)


def shown(said: Any) -> str:
    if isinstance(said, str):
        return said
    return " / ".join(f"{message['role']}: {' '.join(map(part, message['content']))}" for message in said)


def part(value: dict[str, str]) -> str:
    return "⟨image⟩" if value["type"] == "image" else value["text"]


def summary(row: Row) -> str:
    text = "".join([shown(row.prompt), *(f" → {shown(completion)}" for completion in row.completions)]).strip()
    return text + (f" (solution: {row.columns['solution']})" if "solution" in row.columns else "")


@pytest.mark.parametrize(("name", "record", "expected"), ROWS)
def test_a_row(name: str, record: str, expected: str) -> None:
    given = json.loads(record.strip("`"))
    path = Path("rows.jsonl")
    path.write_text(json.dumps(given) + "\n")
    stored = load_rows(path)
    for read in (lambda: read_row(given, 0), lambda: RowDataset(stored)[0]):  # pyright: ignore[reportArgumentType]
        if expected.startswith("error: "):
            with pytest.raises(DataError, match=r"^row 0") as error:
                read()
            assert expected.removeprefix("error: ") in str(error.value)
        else:
            row = read()
            assert summary(row) == expected
            assert summary(row).count("⟨image⟩") == len(row.images)
