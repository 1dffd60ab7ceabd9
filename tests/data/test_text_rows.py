"""Rows of plain text from a column of another name, or from a function, over every kind of records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import datasets
import pytest
from PIL import Image

from boresight.data import RowDataset, RowStream
from boresight.data.sources import load_rows
from boresight.data.text_rows import text_rows
from boresight.errors import DataError
from boresight.types import Row

RECORDS = [
    {"body": f"<image>Color {place}", "images": [Image.new("RGB", (4 + place, 4))], "box": [place, None], "ask": "q"}
    for place in range(3)
]
KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "list": list,
    "data set": datasets.Dataset.from_list,
    "stored stream": lambda records: datasets.Dataset.from_list(records).to_iterable_dataset(),
    "stream": lambda records: datasets.IterableDataset.from_generator(lambda: iter(records)),
}


def rows(records: Any) -> list[Row]:
    if isinstance(records, datasets.IterableDataset):
        return list(RowStream(records))
    return [RowDataset(records)[place] for place in range(len(records))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_another_name(kind: str) -> None:
    found = rows(text_rows(load_rows(KINDS[kind](RECORDS)), field="body"))
    assert [row.completions for row in found] == [(f"<image>Color {place}",) for place in range(3)]
    assert [row.images[0].size for row in found] == [(4, 4), (5, 4), (6, 4)]
    assert [row.columns for row in found] == [{"box": [place, None], "ask": "q"} for place in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_a_row(kind: str) -> None:
    """What the text was made of is gone; images and other columns stay, with their types."""
    records = [
        {**record, "messages": [{"role": "user", "content": "x"}], "prompt": "p", "text": "old"} for record in RECORDS
    ]
    made = text_rows(load_rows(KINDS[kind](records)), formatting_func=lambda row: f"{row['prompt']}: {row['body']}")
    found = rows(made)
    assert [row.completions for row in found] == [(f"p: <image>Color {place}",) for place in range(3)]
    assert [row.images[0].size for row in found] == [(4, 4), (5, 4), (6, 4)]
    assert [row.columns["box"] for row in found] == [[place, None] for place in range(3)]
    assert all(row.columns.keys() == {"box", "ask", "body"} for row in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["text", ""])
def test_nothing_is_asked_for(kind: str, field: str) -> None:
    records = load_rows(KINDS[kind](RECORDS))
    assert text_rows(records, field=field) is records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (RECORDS, {"field": "boddy"}, "no such column, only body, images, box, ask. Did you mean 'body'"),
        ([{"body": "a", "text": "b"}], {"field": "body"}, "the column 'text' is there as well"),
        ([{"body": "a", "prompt": "b"}], {"field": "body"}, "the column 'prompt' is there as well"),
        (RECORDS, {"formatting_func": lambda row: [row["body"]]}, "row 0: formatting_func returned a list"),
        (
            [{"a": "1"}, {"a": "x"}],
            {"formatting_func": lambda row: str(int(row["a"]))},
            r"row 1: formatting_func failed \(ValueError: invalid literal",
        ),
    ],
)
def test_what_makes_no_text(kind: str, records: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(text_rows(load_rows(KINDS[kind](records)), **options))


def test_images_are_not_written_anew() -> None:
    """Their bytes are those of the file, whatever kind of records holds them. Saved again, they would have datasets' quality."""
    stream = BytesIO()
    Image.effect_noise((8, 8), 50).convert("RGB").save(stream, "JPEG", quality=40, comment=b"as taken")
    records = [{"body": "x", "image": {"bytes": stream.getvalue(), "path": None}}]
    features = datasets.Features({"body": datasets.Value("string"), "image": datasets.Image()})
    stored = datasets.Dataset.from_list(records, features=features)
    for given in (records, stored, stored.to_iterable_dataset()):
        for made in (text_rows(load_rows(given), field="body"), text_rows(load_rows(given), formatting_func=str)):
            (row,) = rows(made)
            assert row.images[0].digest == hashlib.sha256(stream.getvalue()).hexdigest()


def test_rows_that_change_each_time_are_refused() -> None:
    changing = datasets.Dataset.from_list([{"a": "x"}]).with_transform(lambda batch: batch)
    with pytest.raises(DataError, match=r"has a transform \(with_transform\)"):
        text_rows(changing, formatting_func=lambda row: row["a"])
