from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from boresight.data import Encoder, RowDataset, RowStream, check_rows, decode, load_rows
from boresight.data.columns import renamed
from boresight.errors import DataError, ImageError
from boresight.types import Row

datasets.disable_progress_bars()
WIDTHS = [10, 11, 12, 13]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in a folder of their own."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for width in WIDTHS:
        Image.new("RGB", (width, 20), (width, 0, 0)).save(images / f"{width}.png")
    return images.parent


def loaded(source: Any, *, split: str | Sequence[str] | None = None) -> RowDataset:
    records = load_rows(source, split=split)
    assert not isinstance(records, datasets.IterableDataset)
    return RowDataset(records)


def records(make: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{"prompt": f"width {width}?", "image": make(width), "solution": width} for width in WIDTHS]


def relative(width: int) -> str:
    return f"images/{width}.png"


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def assert_four_rows(rows: Any, *, number: type = int) -> None:
    """The same four rows, wherever they came from; the numbers of a CSV are text."""
    got: list[Row] = list(rows)
    assert [row.index for row in got] == [0, 1, 2, 3]
    assert [row.prompt for row in got] == [f"width {width}?" for width in WIDTHS]
    assert [row.images[0].size for row in got] == [(width, 20) for width in WIDTHS]
    assert [decode(row.images[0]).getpixel((3, 3)) for row in got] == [(width, 0, 0) for width in WIDTHS]
    assert [row.columns["solution"] for row in got] == [number(width) for width in WIDTHS]


class TestObjects:
    def test_a_list(self) -> None:
        given = records(lambda width: Image.new("RGB", (width, 20), (width, 0, 0)))
        rows = loaded(given)
        assert_four_rows(rows[place] for place in range(len(rows)))
        assert rows[2].images[0] is rows[2].images[0]  # encoded once, when loaded
        assert isinstance(given[0]["image"], Image.Image)

    def test_rows_of_a_list_may_differ_in_columns_and_kinds(self) -> None:
        given = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}], "images": [Image.new("1", (2, 2))]}]
        rows = loaded(given)
        assert [len(rows[place].images) for place in range(2)] == [0, 1]

    @pytest.mark.parametrize("as_list", [False, True])
    def test_images_of_a_dataset_stay_encoded(self, folder: Path, as_list: bool) -> None:
        paths = records(lambda width: str(folder / relative(width)))
        if as_list:
            paths = [{"images": [row.pop("image")], **row} for row in paths]
            feature: Any = datasets.Features({"images": datasets.List(datasets.Image())})
        else:
            feature = datasets.Features({"image": datasets.Image()})
        plain = {"prompt": datasets.Value("string"), "solution": datasets.Value("int64")}
        data = datasets.Dataset.from_list(paths, features=datasets.Features({**feature, **plain}))
        rows = loaded(data)
        assert_four_rows(rows[place] for place in range(4))
        assert rows[1].images[0].source == str(folder / "images" / "11.png")  # decoded, it would be bytes of a PNG

    def test_images_inside_messages_of_a_dataset(self) -> None:
        part = {"type": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image()}
        messages = datasets.List({"role": datasets.Value("string"), "content": datasets.List(part)})
        content = [{"type": "image", "image": Image.new("RGB", (7, 5))}, {"type": "text", "text": "what?"}]
        data = datasets.Dataset.from_list(
            [{"prompt": [{"role": "user", "content": content}]}], features=datasets.Features({"prompt": messages})
        )
        row = RowDataset(data)[0]
        assert row.images[0].size == (7, 5)
        assert row.prompt == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]

    def test_other_image_columns_come_decoded_as_their_feature_says(self, folder: Path) -> None:
        rows = records(lambda width: str(folder / relative(width)))
        data = datasets.Dataset.from_list([{**row, "mask": row["image"]} for row in rows])
        data = data.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
        assert RowDataset(data)[3].columns["mask"].size == (13, 20)

    def test_selected_and_shuffled_rows(self, folder: Path) -> None:
        data = datasets.Dataset.from_list(records(lambda width: str(folder / relative(width))))
        picked = RowDataset(data.select([3, 1]))
        assert [picked[place].columns["solution"] for place in range(2)] == [13, 11]
        assert picked[-1].index == 1
        with pytest.raises(IndexError):
            picked[2]

    def test_a_users_transform_is_respected(self) -> None:
        data = datasets.Dataset.from_dict({"question": ["a", "b"]})
        turned = data.with_transform(lambda batch: {"prompt": [text.upper() for text in batch["question"]]})
        assert RowDataset(turned)[1].prompt == "B"

    def test_a_stream(self, folder: Path) -> None:
        data = datasets.Dataset.from_list(records(lambda width: str(folder / relative(width))))
        stream = data.cast_column("image", datasets.Image()).to_iterable_dataset()
        streamed = load_rows(stream)
        assert isinstance(streamed, datasets.IterableDataset)
        rows = RowStream(streamed)
        assert_four_rows(rows)
        assert next(iter(rows)).images[0].source == str(folder / "images" / "10.png")

    def test_workers_of_a_loader_read_each_row_once(self, folder: Path) -> None:
        rows = loaded(records(lambda width: str(folder / relative(width))))
        loader = DataLoader(rows, batch_size=2, num_workers=2, collate_fn=list)
        assert_four_rows(row for batch in loader for row in batch)

    def test_splits(self) -> None:
        splits = datasets.DatasetDict(
            {name: datasets.Dataset.from_dict({"prompt": [name]}) for name in ("test", "train", "validation")}
        )
        assert loaded(splits)[0].prompt == "train"
        assert loaded(splits, split="test")[0].prompt == "test"
        assert loaded(splits, split=("dev", "test", "train"))[0].prompt == "test"
        del splits["train"]
        with pytest.raises(DataError, match="none is 'train'"):
            load_rows(splits)
        with pytest.raises(DataError, match="none is 'dev' or 'train'"):
            load_rows(splits, split=("dev", "train"))
        del splits["validation"]
        assert loaded(splits, split=("dev", "train"))[0].prompt == "test"  # the only one
        with pytest.raises(DataError, match=r"no split 'tests'.*Did you mean 'test'"):
            load_rows(splits, split="tests")


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "write"),
        [("a.jsonl", write_jsonl), ("a.json", write_json), ("a.csv", write_csv), ("a.parquet", write_parquet)],
    )
    def test_relative_paths_are_taken_from_the_files_folder(self, name: str, write: Any, folder: Path) -> None:
        path = write(folder / name, records(relative))
        rows = loaded(path)
        assert_four_rows((rows[place] for place in range(4)), number=str if name == "a.csv" else int)

    def test_paths_inside_messages_and_lists(self, folder: Path) -> None:
        inside = [{"role": "user", "content": [{"type": "image", "path": relative(12)}, {"type": "text", "text": "?"}]}]
        path = write_jsonl(folder / "a.jsonl", [{"prompt": inside, "images": None}])
        assert loaded(path)[0].images[0].size == (12, 20)
        path = write_jsonl(folder / "b.jsonl", [{"prompt": "x", "images": [relative(12), relative(13)]}])
        row = loaded(str(path))[0]
        assert [image.size[0] for image in row.images] == [12, 13]

    def test_rows_with_and_without_images(self, folder: Path) -> None:
        rows = [{"prompt": "x", "image": relative(12)}, {"prompt": "y", "image": None}, {"prompt": "z"}]
        rows = loaded(write_jsonl(folder / "a.jsonl", rows))
        assert [len(rows[place].images) for place in range(3)] == [1, 0, 0]

    def test_parquet_with_images_inside(self, folder: Path) -> None:
        stored = records(lambda width: {"bytes": (folder / relative(width)).read_bytes(), "path": relative(width)})
        data = datasets.Dataset.from_list(stored).cast_column("image", datasets.Image())
        data.to_parquet(folder / "a.parquet")
        shutil.rmtree(folder / "images")
        rows = loaded(folder / "a.parquet")
        assert_four_rows(rows[place] for place in range(4))

    @pytest.mark.parametrize("write", [write_jsonl, write_csv])
    def test_a_folder_of_images_with_metadata(self, write: Any, folder: Path) -> None:
        rows = [{"file_name": relative(row["solution"]), **row} for row in records(lambda _: None)]
        for row in rows:
            del row["image"]
        write(folder / f"metadata.{'jsonl' if write is write_jsonl else 'csv'}", rows)
        rows = loaded(folder)
        assert_four_rows((rows[place] for place in range(4)), number=str if write is write_csv else int)

    def test_a_folder_of_data_files_with_splits_by_name(self, folder: Path) -> None:
        rows = records(relative)
        write_jsonl(folder / "my-train.jsonl", rows[:1])
        write_jsonl(folder / "test_0.jsonl", rows[1:])
        assert len(loaded(folder)) == 1
        tested = loaded(folder, split="test")
        assert [tested[place].images[0].size[0] for place in range(3)] == WIDTHS[1:]

    def test_a_saved_dataset(self, folder: Path) -> None:
        data = datasets.Dataset.from_list(records(lambda width: str(folder / relative(width))))
        data.save_to_disk(folder / "saved")
        with pytest.raises(ImageError, match=r"row 0: the image's path .* leads out of .*saved.*--image_root"):
            load_rows(folder / "saved")
        rows = RowDataset(load_rows(folder / "saved", image_root=folder))  # pyright: ignore[reportArgumentType]
        assert_four_rows(rows[place] for place in range(4))

    def test_what_cannot_be_loaded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_jsonl(folder / "train.jsonl", [{"prompt": "x"}])
        (folder / "broken.json").write_text("{")
        (folder / "notes.txt").write_text("x")
        (folder / "empty").mkdir()
        for source, says in [
            (folder / "trian.jsonl", "There is no file.*Did you mean 'train.jsonl'"),
            (folder / "broken.json", "broken.json, line 1: this is not JSON"),
            (folder / "notes.txt", "notes.txt: data files must be of one kind"),
            (folder / "empty", "has no data"),
            (7, "A int is no data set"),
            ([7], "row 0: a record is a mapping"),
            ("somebody/something", "no file, folder or reachable hub data set 'somebody/something'"),
        ]:
            with pytest.raises(DataError, match=says):
                load_rows(source)


class TestCheck:
    def test_all_bad_rows_are_counted_and_ten_named(self, folder: Path) -> None:
        rows = [{"prompt": "x", "image": str(folder / relative(10))}] * 3
        rows += [{"prompt": "x", "image": f"nowhere/{place}.png"} for place in range(12)]
        with pytest.raises(DataError) as error:
            check_rows(rows)
        lines = str(error.value).splitlines()
        assert lines[0] == "12 of 15 rows cannot be used:"
        assert [line.split(",")[0] for line in lines[1:11]] == [f"row {place}" for place in range(3, 13)]
        assert lines[11:] == ["… and 2 more."]

    def test_a_stream(self) -> None:
        stream = datasets.Dataset.from_dict({"prompt": ["a", "", "c"]}).to_iterable_dataset()
        with pytest.raises(DataError, match="1 of 3 rows cannot be used:\nrow 1: the prompt is empty"):
            check_rows(stream)

    def test_a_further_check(self, encoder: Callable[..., Encoder]) -> None:
        rows = [{"prompt": "fine"}, {"prompt": "not <|image_pad|> fine"}]
        assert check_rows(rows) == 2
        with pytest.raises(DataError, match="row 1: a text contains '<|image_pad|>'".replace("|", r"\|")):
            check_rows(rows, check=encoder().count_tokens)

    def test_no_rows(self) -> None:
        with pytest.raises(DataError, match="no rows"):
            check_rows([])


@pytest.mark.parametrize("prompt", ["question", "prompt"])
def test_a_stream_keeps_the_bytes_of_its_images(prompt: str) -> None:
    """Renamed and with a system message; saved again, they would have another quality."""
    stream = BytesIO()
    Image.effect_noise((8, 8), 50).convert("RGB").save(stream, "JPEG", quality=40, comment=b"as taken")
    record = {prompt: "what?", "photo": {"bytes": stream.getvalue(), "path": None}}
    features = datasets.Features({prompt: datasets.Value("string"), "photo": datasets.Image()})
    records = datasets.Dataset.from_list([record], features=features).to_iterable_dataset()
    read = renamed(records, {"image": "photo", **({} if prompt == "prompt" else {"prompt": prompt})}, "it")
    (row,) = RowStream(read)
    assert row.images[0].digest == hashlib.sha256(stream.getvalue()).hexdigest()
