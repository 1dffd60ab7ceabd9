"""Files read without guessing."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boresight.data import RowDataset, RowStream, load_rows
from boresight.data.faithful import values_of, with_column
from boresight.data.tables import read_table
from boresight.errors import DataError

datasets.disable_progress_bars()
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def write_csv(path: Path, cells: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(["prompt", "solution"])
        writer.writerows([["q", cell] for cell in cells])


def write_jsonl(path: Path, cells: list[Any]) -> None:
    lines = [json.dumps({"prompt": "q", "solution": cell}, ensure_ascii=len(str(cell)) % 2 == 0) for cell in cells]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(path: Path, cells: list[str]) -> None:
    pyarrow.parquet.write_table(pa.table({"prompt": ["q"] * len(cells), "solution": cells}), path)


WRITE: dict[str, Callable[[Path, list[Any]], None]] = {
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.jsonl": write_jsonl,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITE)
@settings(max_examples=25, deadline=None)
@given(cells=st.lists(TEXT, min_size=1, max_size=4))
@example(
    cells=[
        "None",
        "NA",
        "null",
        "007",
        "1e5",
        "True",
        "2020-01-01",
        "",
        "nan",
        "-",
        "\r",
        "\n",
        "\x00",
        '"',
        "\u2028",
        " 7 ",
    ]
)
@example(cells=["2020-01-01", "2020-02-01"])
@example(cells=["7", "", "12"])
def test_any_text_reaches_the_reward_unchanged(name: str, cells: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITE[name](path, cells)
        rows = RowDataset(load_rows(path))  # pyright: ignore[reportArgumentType]
        assert [rows[place].columns["solution"] for place in range(len(rows))] == cells
        if name != "a.parquet":
            stream: Any = load_rows(path, streaming=True)
            assert [row.columns["solution"] for row in RowStream(stream)] == cells


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(JSON, min_size=1, max_size=4))
@example(values=["7", 7, 7.0, True, None, {"a": None}])
@example(values=[0.1234567890123456, 1, "x"])
def test_any_json_is_read_as_it_was_written(values: list[Any]) -> None:
    """Types and null keys included: 1, 1.0 and True are three values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        write_jsonl(path, values)
        rows = RowDataset(load_rows(path))  # pyright: ignore[reportArgumentType]
        read = [rows[place].columns["solution"] for place in range(len(rows))]
        assert repr(read) == repr(values)
        column = with_column(datasets.Dataset.from_dict({"prompt": ["q"] * len(values)}), "solution", values)
        assert repr(values_of(column, "solution")) == repr(values)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for cell in ("red", "green"):
        write_csv(path, [cell])
        assert read_table([path])["solution"][:] == [cell]  # pyright: ignore[reportIndexIssue]


def test_several_files_and_forms_of_json(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b"}]
    forms = {
        "list.json": json.dumps(rows, indent=1),
        "lines.json": "\n".join(map(json.dumps, rows)),
        "inside.json": json.dumps({"data": rows}, indent=1),
        "mark.jsonl": "\ufeff" + "\n\n".join(map(json.dumps, rows)),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        table: Any = read_table([tmp_path / name])
        assert (table["prompt"][:], table["n"][:]) == (["a", "b"], [1, None])
    (tmp_path / "b.csv").write_text("prompt,more\nc,\n")
    write_csv(tmp_path / "a.csv", ["x"])
    table = read_table([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert table[:] == {"prompt": ["q", "c"], "solution": ["x", None], "more": [None, ""]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.csv",
            b"a,b\n1,2\n1,2,3\n",
            r"a.csv, row 1 \(line 3\): 3 cells, but the first line names 2 columns \(a, b\)",
        ),
        ("a.csv", b"a,b\n1\n", r"row 0 \(line 2\): 1 cells"),
        ("a.csv", b'a,b\n1,"2\n3,4\n', "a.csv, line 3: unexpected end of data.*close every quote"),
        ("a.csv", b"a,a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"a\n\xff\n", "a.csv is not UTF-8"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl, line 2: a row is an object with columns, not a list"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "line 1: the text .* lone surrogate"),
        ("a.jsonl", b'{"a": 123456789012345678901234567890}\n', "row 0: an integer of more than 64 bits"),
        ("a.jsonl", b"", "there is no row"),
        ("a.json", b'{"a": {"b": 1},\n "c": 2}', "holds one dict. Write a list of rows"),
        ("a.jsonl", b"[" * 100_000, "this is not JSON"),
    ],
)
def test_what_is_no_table_names_the_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_table([tmp_path / name])
