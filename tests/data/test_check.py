"""All rows checked before training: by several processes, once, and with every policy for the bad ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from boresight.data import Encoder, RowDataset, RowStream, load_rows, read_row
from boresight.data.bad_rows import StreamQuarantine, usable_records, write_quarantine
from boresight.data.check import MIN_PARALLEL, Checked, RowReport, examine
from boresight.errors import DataError, ModelError
from boresight.types import Row
from tests.data.messages import IMAGE, assistant, text, user

datasets.disable_progress_bars()
SQUARE = Image.new("RGB", (64, 48), (10, 200, 30))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("BORESIGHT_CACHE", str(tmp_path / "boresight"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Just enough rows for several processes, each with one of ten images; row 7 names a file that is missing."""
    for place in range(10):
        Image.new("RGB", (10 + place, 8), (place, 0, 0)).save(tmp_path / f"{place}.png")
    names = [f"{place % 10}.png" for place in range(MIN_PARALLEL)]
    names[7] = "missing.png"
    (tmp_path / "rows.csv").write_text("prompt,image\n" + "".join(f"q,{name}\n" for name in names))
    return tmp_path / "rows.csv"


class Counting:
    """A check that leaves a mark for each row that it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, row: Row) -> Checked:
        with (self.folder / str(os.getpid())).open("a") as file:
            file.write(f"{row.index} ")
        return Checked(num_tokens=row.images[0].size[0], findings=("wide",) if row.images[0].size[0] == 19 else ())

    def rows(self) -> list[int]:
        """The rows since the last call."""
        found = sorted(int(number) for path in self.folder.iterdir() for number in path.read_text().split())
        for path in self.folder.iterdir():
            path.unlink()
        return found


def test_processes_find_the_same_as_one(table: Path, tmp_path: Path) -> None:
    count = Counting(tmp_path / "seen")
    rows = RowDataset(load_rows(table))  # pyright: ignore[reportArgumentType]
    reports = []
    for workers in (1, 2):
        reports.append(examine(rows, count, workers=workers))
        assert len(list((tmp_path / "seen").iterdir())) == workers
        assert count.rows() == [row for row in range(MIN_PARALLEL) if row != 7]
    alone, together = reports
    assert asdict(alone) == asdict(together)
    assert (alone.num_rows, alone.num_counted, alone.max_tokens, alone.max_images) == (
        MIN_PARALLEL,
        MIN_PARALLEL - 1,
        19,
        1,
    )
    assert list(alone.bad) == [7] and "cannot read the image" in alone.bad[7][0]
    assert alone.findings == {"wide": list(range(9, MIN_PARALLEL, 10))}
    assert alone.summary[0].startswith("100 of 1000 rows (9, 19, 29, 39, 49, 59, 69, 79, 89, 99, …): wide")


def test_what_was_found_is_kept_until_something_changes(table: Path, tmp_path: Path) -> None:
    count = Counting(tmp_path / "seen")

    def found(key: str = "a") -> tuple[RowReport, list[int]]:
        report = examine(RowDataset(load_rows(table)), count, key=key)  # pyright: ignore[reportArgumentType]
        return report, count.rows()

    first, looked_at = found()
    assert len(looked_at) == MIN_PARALLEL - 1
    again, looked_at = found()
    assert looked_at == [] and asdict(again) == asdict(
        first
    )  # the bad row is looked at again, and is bad before the check
    Image.new("RGB", (10, 8)).save(tmp_path / "missing.png")
    mended, looked_at = found()
    assert looked_at == [7] and not mended.bad
    (tmp_path / "missing.png").unlink()
    assert list(found()[0].bad) == [7]  # a file that vanished
    assert len(found("b")[1]) == MIN_PARALLEL - 1  # another check
    with table.open("a") as file:
        file.write("q,1.png\n")
    assert len(found()[1]) == MIN_PARALLEL  # other rows


def test_every_row_of_a_changed_file_is_looked_at(table: Path, tmp_path: Path) -> None:
    count = Counting(tmp_path / "seen")
    rows = RowDataset(load_rows(table))  # pyright: ignore[reportArgumentType]
    examine(rows, count, key="a")
    count.rows()
    (tmp_path / "3.png").write_bytes(b"damaged")
    report = examine(rows, count, key="a")
    assert set(report.bad) == {7, *range(3, MIN_PARALLEL, 10)}


def test_an_error_of_the_set_up_is_no_error_of_a_row() -> None:
    def refuse(row: Row) -> None:
        raise ModelError("no chat template")

    with pytest.raises(ModelError, match="no chat template"):
        examine(RowDataset([{"prompt": "q"}]), refuse)


def test_a_raw_error_gets_its_row() -> None:
    def fail(row: Row) -> None:
        raise KeyError("x")

    assert examine(RowDataset([{"prompt": "q"}]), fail).bad == {
        0: ("row 0 cannot be read (KeyError: 'x'). Correct it or drop it.", False)
    }


# ---- Lengths from sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llava_next", "gemma3", "internvl"])
def test_sized_lengths_bound_the_true_ones(family: str, encoder: Callable[..., Encoder]) -> None:
    encode = encoder(family)
    for images in ([], [SQUARE], [Image.new("RGB", (90, 30)), SQUARE] if family != "llava_next" else [SQUARE]):
        row = read_row({"prompt": [user([*[IMAGE] * len(images), text("what?")])], "images": images}, 0)
        sized, true = encode.sized().prompt(row), encode.prompt(row)
        assert 0 <= len(sized.ids) - len(true.ids) <= 16 * len(images)
        assert sized.vision == {}
        assert encode.counts_by_size
        assert encode.sized().demonstration(read_row({"messages": [user("hi"), assistant("ho")]}, 0)).num_tokens > 2


def test_sized_needs_no_pixels(encoder: Callable[..., Encoder], tmp_path: Path) -> None:
    SQUARE.save(tmp_path / "a.png")
    row = read_row({"prompt": [user("what?")], "completion": [assistant("red")], "image": str(tmp_path / "a.png")}, 3)
    (tmp_path / "a.png").unlink()
    group = encoder().sized().demonstration(row, max_length=200)
    assert bool(group.completions[0].mask.any())
    with pytest.raises(DataError, match=r"row 3: .* are more than max_length \(20\)"):
        encoder().sized().demonstration(row, max_length=20)


# ---- Policies ------------------------------------------------------------------------------------------------------------------------

RECORDS: list[dict[str, Any]] = [
    {"prompt": [user("<image>what?")], "image": SQUARE, "solution": "0"},
    {"prompt": [user("<image>what now?")], "image": "missing.png", "solution": "1"},
    {"prompt": [user("x")], "videos": ["a.mp4"], "solution": "2"},
    {"prompt": [user([IMAGE, text("and?")])], "images": ["missing.png"], "solution": "3"},
    {"prompt": [user("fine")], "solution": "4"},
]


def stored(kind: str) -> Any:
    if kind == "list":
        return load_rows(RECORDS)
    plain = [
        {"prompt": record["prompt"][0]["content"], "image": record.get("image"), "solution": record["solution"]}
        for record in RECORDS
    ]
    plain[2] |= {"prompt": "<video>x"}
    plain[3] |= {"prompt": "<image>and?", "image": "missing.png"}
    plain[0] |= {"image": None, "prompt": "what?"}
    return datasets.Dataset.from_list(plain)


@pytest.mark.parametrize("kind", ["list", "dataset"])
def test_policies(kind: str, tmp_path: Path) -> None:
    records = stored(kind)
    report = examine(RowDataset(records))
    assert list(report.bad) == [1, 2, 3]
    with pytest.raises(DataError, match="3 of 5 rows cannot be used:\nrow 1"):
        usable_records(records, report, "error")
    dropped, aside = usable_records(records, report, "drop")
    assert [RowDataset(dropped)[place].columns["solution"] for place in range(len(dropped))] == ["0", "4"]
    assert [(each.row, each.done) for each in aside] == [(1, "dropped"), (2, "dropped"), (3, "dropped")]
    kept, aside = usable_records(records, report, "keep_text", name="eval")
    rows = [RowDataset(kept)[place] for place in range(len(kept))]
    assert [row.columns["solution"] for row in rows] == ["0", "1", "3", "4"]
    assert [row.index for row in rows] == [0, 1, 2, 3]
    assert [len(row.images) for row in rows] == [int(kind == "list"), 0, 0, 0]
    said = rows[1].prompt if isinstance(rows[1].prompt, str) else rows[1].prompt[0]["content"][0]["text"]
    assert said == "what now?"
    assert RowDataset(kept.select([2, 1]))[0].columns["solution"] == "3"
    write_quarantine(tmp_path / "quarantine.jsonl", aside)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["data_set"], line["row"], line["done"]) for line in lines] == [
        ("eval", 1, "kept as text"),
        ("eval", 2, "dropped"),
        ("eval", 3, "kept as text"),
    ]
    assert "missing.png" in lines[0]["reason"]


def test_no_row_left() -> None:
    records = load_rows([{"prompt": ""}])
    with pytest.raises(
        DataError, match="None of the 1 rows of the data set 'train' can be used:\nrow 0: the prompt is empty"
    ):
        usable_records(records, examine(RowDataset(records)), "drop")  # pyright: ignore[reportArgumentType]


def test_a_stream_drops_the_same_rows_wherever_it_is_read(tmp_path: Path) -> None:
    def too_long(row: Row) -> None:
        if row.prompt == "long":
            raise DataError(f"row {row.index}: too long")

    given_rows = [
        {"prompt": "a", "image": None},
        {"prompt": "long", "image": None},
        {"prompt": "c", "image": "missing.png"},
    ]
    stream = datasets.Dataset.from_list(given_rows).to_iterable_dataset()
    quarantine = StreamQuarantine(tmp_path / "run" / "quarantine.jsonl", "train")
    for policy, expected in {"drop": [0], "keep_text": [0, 2]}.items():
        read = partial(RowStream, stream, check=too_long, on_bad_row=policy, set_aside=quarantine)
        assert [row.index for row in read()] == [row.index for row in read()] == expected
    lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["done"]) for line in lines] == [(1, "dropped"), (2, "dropped")]  # each row once
    with pytest.raises(DataError, match="row 2"):
        list(RowStream(stream))


# ---- Findings ------------------------------------------------------------------------------------------------------------------------

PLAIN = {"prompt": [user("what?")], "completion": [assistant("red")]}
FINDINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a mask": ({"image": SQUARE, "mask": SQUARE}, "the column 'mask' looks like images"),
    "a further path": ({"image": SQUARE, "image_2": "b.png"}, "the column 'image_2' looks like images"),
    "a clip": ({"clip": "a.mp4"}, "the column 'clip' looks like videos"),
    "an empty question": ({"prompt": [user(" \n")]}, "the question is empty"),
    "an empty question about an image": ({"prompt": [user("")], "image": SQUARE}, "the question is empty"),
    "an empty answer": ({"completion": [assistant("")]}, "an answer is empty"),
    "a blank solution": ({"solution": ""}, "the solution is blank"),
    "a float image": ({"image": Image.new("F", (8, 8), 0.5)}, "an image is of fractions (float), scaled to 0–255"),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_findings_are_reported_and_change_nothing(case: str) -> None:
    change, says = FINDINGS[case]
    report = examine(RowDataset(load_rows([PLAIN, {**PLAIN, **change}])))  # pyright: ignore[reportArgumentType]
    assert not report.bad and report.num_rows == 2
    assert [(found.startswith(says), rows) for found, rows in report.findings.items()] == [(True, [1])]


# ---- Anything ------------------------------------------------------------------------------------------------------------------------

NAMES = [
    "messages",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "image",
    "images",
    "videos",
    "conversations",
    "problem",
    "question",
    "text",
    "tools",
    "role",
    "content",
    "type",
    "from",
    "value",
    "path",
    "bytes",
    "url",
]
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
WORDS = st.sampled_from(
    [
        "user",
        "assistant",
        "system",
        "human",
        "gpt",
        "text",
        "image",
        "image_url",
        "<image>",
        "<video>",
        "[{",
        "{}",
        "data:,",
    ]
)
ANY = st.recursive(
    LEAF | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), ANY, max_size=4))
@example({"problem": "", "conversations": {"messages": None, 0: None}})
def test_any_record_is_a_row_or_an_error_that_names_it(record: dict[str, Any]) -> None:
    report = examine(RowDataset([record]))
    assert all(reason.startswith("row 0") and "cannot be read (" not in reason for reason, _ in report.bad.values())
