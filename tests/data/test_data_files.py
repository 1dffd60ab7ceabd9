"""Some files of a folder, and the kinds of tables that `datasets.load_dataset` takes with `data_files`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from boresight.data import DatasetConfig, DatasetMixtureConfig, RowDataset, RowStream, get_dataset, load_rows
from boresight.data.stored import built_rows
from boresight.errors import ConfigError, DataError, SplitError

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three tables in a folder, one of them deeper, beside images."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "deep/c"):
        path = tmp_path / "data" / f"part-{name}.jsonl" if name != "deep/c" else tmp_path / "data" / "deep" / "c.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"prompt": name, "solution": "007", "image": f"{name[-1]}.png"}) + "\n")
        Image.new("RGB", (4, 4)).save(path.parent / f"{name[-1]}.png")
    (tmp_path / "data" / "table.csv").write_text("prompt,solution\ncsv,None\n")
    return tmp_path / "data"


def prompts(records: Any) -> list[Any]:
    return [RowDataset(records)[place].prompt for place in range(len(records))]


@pytest.mark.parametrize(
    ("source", "reading", "expected"),
    [
        ("data", {"data_files": "part-a.jsonl"}, ["a"]),
        ("data", {"data_files": ["part-b.jsonl", "part-a.jsonl"]}, ["b", "a"]),
        ("data", {"data_files": "part-*.jsonl"}, ["a", "b"]),
        ("data", {"data_files": ["part-*.jsonl", "part-a.jsonl"]}, ["a", "b"]),  # no file twice
        ("data", {"data_dir": "deep"}, ["deep/c"]),
        ("data", {"data_dir": "deep", "data_files": "*.jsonl"}, ["deep/c"]),
        ("data", {"data_files": {"train": "part-a.jsonl", "dev": "part-b.jsonl"}, "split": "dev"}, ["b"]),
        ("json", {"data_files": "data/part-b.jsonl"}, ["b"]),
        ("json", {"data_files": "part-b.jsonl", "data_dir": "data"}, ["b"]),
        ("json", {"data_dir": "data/deep"}, ["deep/c"]),
        ("csv", {"data_files": "data/table.csv"}, ["csv"]),
    ],
)
def test_the_files_that_are_read(source: str, reading: dict[str, Any], expected: list[str]) -> None:
    records = load_rows(source, **reading)
    assert prompts(records) == expected
    assert RowDataset(records)[0].columns["solution"] in ("007", "None")  # as they are written  # pyright: ignore[reportArgumentType]
    streamed: Any = load_rows(source, streaming=True, **reading)
    assert [row.prompt for row in RowStream(streamed)] == expected


def test_images_beside_the_files(folder: Path) -> None:
    for reading in ({"data_files": "data/part-b.jsonl"}, {"data_dir": "data", "data_files": "part-b.jsonl"}):
        rows = RowDataset(load_rows("json", **reading))  # pyright: ignore[reportArgumentType]
        assert rows[0].images[0].source == str(folder / "b.png")


def test_a_mixture_of_files_as_trl_configures_it() -> None:
    parts: Any = [{"path": "json", "data_files": "data/part-a.jsonl"}, {"path": "data", "data_files": "part-b.jsonl"}]
    assert prompts(get_dataset(DatasetMixtureConfig(parts))["train"]) == ["a", "b"]
    assert DatasetMixtureConfig(parts).datasets[0] == DatasetConfig("json", data_files="data/part-a.jsonl")


def test_a_folder_has_the_name_of_a_kind(folder: Path) -> None:
    folder.rename(folder.with_name("json"))
    assert prompts(load_rows("json", data_files="part-a.jsonl")) == ["a"]


@pytest.mark.parametrize(
    ("source", "reading", "message"),
    [
        ("data", {"data_files": "part-x.jsonl"}, r"no file matches 'part-x.jsonl' \(looked in .*data\). Did you mean"),
        ("data", {"data_files": "deep"}, "no file matches 'deep'"),
        ("data", {"data_files": []}, "data_files names no file"),
        ("data", {"data_dir": "shallow"}, "data_dir: there is no folder 'data/shallow'"),
        ("json", {"data_dir": "nowhere"}, "data_dir: there is no folder 'nowhere'"),
        ("data", {"data_files": ["part-a.jsonl", "table.csv"]}, "data files must be of one kind"),
        ("json", {"data_files": "https://host/a.jsonl"}, "is not on this machine. Download it"),
        ("data/table.csv", {"data_files": "table.csv"}, "is a file, so data_dir and data_files have no effect"),
        ([{"prompt": "x"}], {"data_files": "table.csv"}, "data_files has no effect on a list"),
        ("data", {"data_files": {"train": "part-a.jsonl"}, "split": "dev"}, "has no split 'dev', only train"),
    ],
)
def test_files_that_are_not_there(source: Any, reading: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, SplitError), match=message):
        load_rows(source, **reading)


def test_parts_that_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match=r"a part has no option 'data_file'\. Did you mean 'data_files'"):
        DatasetMixtureConfig([{"path": "json", "data_file": "x"}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="every part needs a path"):
        DatasetMixtureConfig([{"data_files": "x"}])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="A mixture needs at least one data set"):
        get_dataset(DatasetMixtureConfig())


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_of_the_hub_are_read_as_text(tmp_path: Path, streaming: bool) -> None:
    """The builder is that of a data set on the hub; `datasets` itself would give 7, None and a date."""
    tmp_path = tmp_path / "hub"
    tmp_path.mkdir()
    (tmp_path / "train.csv").write_text("prompt,solution\nwhich?,007\nand?,None\n")
    (tmp_path / "test.csv").write_text("prompt,solution\nwhen?,2024-05-01\n")
    splits = built_rows(datasets.load_dataset_builder(str(tmp_path)), streaming=streaming)
    assert [row["solution"] for row in splits["train"]] == ["007", "None"]
    assert [row["solution"] for row in splits["test"]] == ["2024-05-01"]


def test_json_of_the_hub_keeps_dates_as_written(tmp_path: Path) -> None:
    tmp_path = tmp_path / "hub"
    tmp_path.mkdir()
    (tmp_path / "train.jsonl").write_text('{"prompt": "when?", "solution": "2024-05-01T00:00:00"}\n')
    splits = built_rows(datasets.load_dataset_builder(str(tmp_path)), streaming=False)
    assert [row["solution"] for row in splits["train"]] == ["2024-05-01T00:00:00"]


def test_other_data_sets_of_the_hub_keep_their_types(tmp_path: Path) -> None:
    tmp_path = tmp_path / "hub"
    tmp_path.mkdir()
    datasets.Dataset.from_dict({"prompt": ["how many?"], "solution": [7]}).to_parquet(tmp_path / "train.parquet")
    splits = built_rows(datasets.load_dataset_builder(str(tmp_path)), streaming=False)
    assert splits["train"][0]["solution"] == 7
