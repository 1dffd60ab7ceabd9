"""The rows that flags name: tables by their own columns, parts, mixtures, and what is said when they do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from boresight.cli import load_datasets, read_command
from boresight.cli.command import Command
from boresight.data import RowDataset, RowStream, decode
from boresight.errors import ConfigError, DataError, ImageError
from boresight.types import Row

datasets.disable_progress_bars()
COLORS = ("red", "green", "blue", "white", "black", "gray")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of one colour, and a table about them."""
    images = tmp_path / "colors" / "images"
    images.mkdir(parents=True)
    for color in COLORS:
        Image.new("RGB", (8, 6), color).save(images / f"{color}.png")
    write_csv(images.parent / "train.csv", table())
    return images.parent


def table(image: str = "images/{}.png") -> list[dict[str, Any]]:
    return [
        {"photo": image.format(color), "question": f"which color? {place}", "answer": color, "amount": place}
        for place, color in enumerate(COLORS)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def command(name: str, *words: str) -> Command:
    base = [
        "--model_name_or_path",
        "m",
        "--use_cpu",
        *(["--reward_funcs", "exact_answer_reward"] if name == "grpo" else []),
    ]
    return read_command(name, [*base, *words])


def rows(records: Any) -> list[Row]:
    return list(RowDataset(records)[place] for place in range(len(records)))  # noqa: C400


ASKED = ("--prompt_column", "question", "--image_column", "photo")


def test_a_table_to_sample_from(folder: Path) -> None:
    words = [*ASKED, "--solution_column", "answer", "--dataset_name", str(folder / "train.csv")]
    train, test = load_datasets(command("grpo", *words))
    read = rows(train)
    assert test is None
    assert [row.prompt[0]["role"] for row in read] == ["user"] * 6  # pyright: ignore[reportArgumentType]
    assert read[2].prompt[0]["content"] == [{"type": "image"}, {"type": "text", "text": "which color? 2"}]  # pyright: ignore[reportArgumentType]
    assert [row.columns["solution"] for row in read] == list(COLORS)
    assert [row.columns["amount"] for row in read] == list("012345")
    assert decode(read[2].images[0]).getpixel((0, 0)) == (0, 0, 255)


def test_a_value_inside_a_column(folder: Path) -> None:
    lines = [
        {"question": "q", "reward_model": {"ground_truth": gold}, "extra": json.dumps({"gold": [gold]})}
        for gold in ("None", "07")
    ]
    (folder / "train.csv").unlink()
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in ("reward_model.ground_truth", "extra.gold.0"):
        words = ["--prompt_column", "question", "--solution_column", path, "--dataset_name", str(folder)]
        assert [row.columns["solution"] for row in rows(load_datasets(command("grpo", *words))[0])] == ["None", "07"]
        streamed, _ = load_datasets(command("grpo", *words, "--dataset_streaming", "--max_steps", "1"))
        assert [row.columns["solution"] for row in RowStream(streamed)] == ["None", "07"]
    with pytest.raises(
        DataError, match=r"reward_model.ground_trut: no row .* which has ground_truth. Did you mean 'ground_truth'"
    ):
        words = [
            "--prompt_column",
            "question",
            "--solution_column",
            "reward_model.ground_trut",
            "--dataset_name",
            str(folder),
        ]
        load_datasets(command("grpo", *words))


def test_known_formats_need_no_flags(folder: Path) -> None:
    (folder / "train.csv").unlink()
    line = {"image": "images/red.png", "problem": "Find x.", "solution": "3"}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    for words in ([], ["--system_prompt", "Be brief."]):
        row = rows(load_datasets(command("grpo", "--dataset_name", str(folder), *words))[0])[0]
        assert [message["role"] for message in row.prompt] == ["system"] * bool(words) + ["user"]  # pyright: ignore[reportArgumentType]
        assert len(row.images) == 1 and row.columns["solution"] == "3"
    talk = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Ho"}]
    (folder / "train.jsonl").write_text(json.dumps({"image": "images/red.png", "conversations": talk}) + "\n")
    for words in ([], ["--system_prompt", "Be brief."]):
        row = rows(load_datasets(command("sft", "--dataset_name", str(folder), *words))[0])[0]
        assert [message["role"] for message in row.completions[0]] == ["system"] * bool(words) + ["user", "assistant"]  # pyright: ignore[reportArgumentType]


def test_a_table_to_imitate_and_what_the_system_says(folder: Path) -> None:
    words = [*ASKED, "--completion_column", "amount", "--dataset_name", str(folder), "--system_prompt", "Be brief."]
    row = rows(load_datasets(command("sft", *words))[0])[3]
    assert [message["role"] for message in row.prompt] == ["system", "user"]  # pyright: ignore[reportArgumentType]
    assert row.prompt[0]["content"] == [{"type": "text", "text": "Be brief."}]  # pyright: ignore[reportArgumentType]
    assert row.completions == ([{"role": "assistant", "content": [{"type": "text", "text": "3"}]}],)


def test_a_table_of_preferences(folder: Path) -> None:
    write_csv(folder / "train.csv", [{**row, "worse": "none"} for row in table()])
    words = [*ASKED, "--chosen_column", "answer", "--rejected_column", "worse", "--dataset_name", str(folder)]
    row = rows(load_datasets(command("dpo", *words))[0])[1]
    assert [completion[0]["content"][0]["text"] for completion in row.completions] == ["green", "none"]  # pyright: ignore[reportArgumentType]


def test_plain_prompts_stay_plain_as_in_trl_and_that_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(folder / "train.csv", [{"prompt": "which?", "solution": "a"}])
    assert rows(load_datasets(command("grpo", "--dataset_name", str(folder)))[0])[0].prompt == "which?"
    assert "without its chat template. --prompt_column prompt" in capsys.readouterr().out
    prompt = rows(load_datasets(command("grpo", "--dataset_name", str(folder), "--prompt_column", "prompt"))[0])[
        0
    ].prompt
    assert prompt[0]["role"] == "user"  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt_column", "questoin"], "has no such column, only photo, question, answer, amount. Did you mean 'question'?"),
        ([], "the columns photo, question, answer, amount. Map them with: --prompt_column NAME"),
        (["--system_prompt", "x", "--solution_column", "answer"], "--prompt_column NAME"),
        (["--prompt_column", "question", "--dataset_train_split", "dev"], "has no split 'dev', only train"),
        (["--prompt_column", "question", "--dataset_train_split", "train[a:b]"], "write a part as train[:1000]"),
        (["--prompt_column", "question", "--image_root", "nowhere"], "there is no such folder"),
        (["--prompt_column", "question", "--image_root", "."], "no column 'image' or 'images' with paths"),
        (["--prompt_column", "question", "--eval_strategy", "steps"], "add --test_split_size 0.1"),
        (["--prompt_column", "question", "--eval_strategy", "steps", "--test_split_size", "7"], "neither a share below 1 nor"),
    ],
)  # fmt: skip
def test_what_does_not_fit(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        load_datasets(command("grpo", "--dataset_name", str(folder), *words))
    assert message in str(caught.value)


def test_two_columns_for_one_thing_are_refused(folder: Path) -> None:
    write_csv(folder / "train.csv", [{"prompt": "a", "question": "b"}])
    with pytest.raises(DataError, match="has a column 'prompt' as well"):
        load_datasets(command("grpo", "--dataset_name", str(folder), "--prompt_column", "question"))


@pytest.mark.parametrize(
    "path",
    [
        "../../outside.png",
        "/etc/hostname.png",
        "file:///etc/hostname.png",
        "FILE:///etc/hostname.png",
        "file:/etc/hostname.png",
        "file://localhost/etc/hostname.png",
        "file:///%65tc/hostname.png",
        "link.png",
        '["/etc/hostname.png"]',
    ],
)
def test_a_table_names_no_image_outside_its_folder(
    folder: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "outside.png")
    (folder / "deep").mkdir()
    (folder / "deep" / "link.png").symlink_to(tmp_path / "outside.png")
    monkeypatch.chdir(folder / "deep")
    file = write_csv(folder / "deep" / "train.csv", table()[:2] + table(path)[2:])
    for color in COLORS[:2]:
        (folder / "deep" / "images").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), color).save(folder / "deep" / "images" / f"{color}.png")
    with pytest.raises(ImageError, match=r"row 2: the image's path .* leads out of .*--image_root"):
        load_datasets(command("grpo", "--dataset_name", str(file), *ASKED))


def test_another_root(folder: Path, tmp_path: Path) -> None:
    file = write_csv(tmp_path / "elsewhere.csv", table("{}.png"))
    words = [*ASKED, "--dataset_name", str(file), "--image_root", str(folder / "images")]
    read = rows(load_datasets(command("grpo", *words))[0])
    assert decode(read[0].images[0]).getpixel((0, 0)) == (255, 0, 0)


def test_a_part_and_rows_set_aside(folder: Path) -> None:
    words = [*ASKED, "--dataset_name", str(folder), "--dataset_train_split", "train[1:5]", "--eval_strategy", "steps"]
    train, test = load_datasets(command("grpo", *words, "--test_split_size", "0.25"))
    assert (len(train), len(test)) == (3, 1)
    assert sorted([*train["answer"], *test["answer"]]) == sorted(COLORS[1:5])
    again = load_datasets(command("grpo", *words, "--test_split_size", "1"))[1]
    assert again["answer"] == test["answer"]  # by the run's seed
    assert len(load_datasets(command("grpo", *words[:-3], "train[50%:]"))[0]) == 3


def test_a_test_split_of_its_own(folder: Path) -> None:
    write_csv(folder / "test.csv", table()[:2])
    words = [*ASKED, "--dataset_name", str(folder), "--eval_strategy", "steps"]
    assert [len(records) for records in load_datasets(command("grpo", *words))] == [6, 2]
    with pytest.raises(DataError, match=r"has no split 'dev'.*name one with --dataset_test_split"):
        load_datasets(command("grpo", *words, "--dataset_test_split", "dev"))


def test_a_metadata_table_without_file_names_is_an_ordinary_table(folder: Path) -> None:
    (folder / "train.csv").rename(folder / "metadata.csv")
    assert len(rows(load_datasets(command("grpo", *ASKED, "--dataset_name", str(folder)))[0])) == 6


def test_some_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    write_csv(folder / "more.csv", [{**row, "answer": "None"} for row in table()[:2]])
    words = [*ASKED, "--solution_column", "answer"]
    for where in (
        ["--dataset_name", str(folder), "--data_files", "more.csv"],
        ["--dataset_name", "csv", "--data_dir", str(folder), "--data_files", "m*.csv"],
    ):
        read = rows(load_datasets(command("grpo", *words, *where))[0])
        assert [(row.columns["solution"], row.images[0].size) for row in read] == [("None", (8, 6))] * 2
    part = {"path": "csv", "data_files": "colors/more.csv", "prompt_column": "question", "image_column": "photo"}
    (tmp_path / "mix.yaml").write_text(json.dumps({"datasets": [part], "streaming": True, "max_steps": 1}))
    (tmp_path / "one.yaml").write_text(json.dumps({"dataset_name": "csv", "data_files": ["colors/more.csv"]}))
    streamed, _ = load_datasets(command("grpo", "--config", str(tmp_path / "mix.yaml")))
    assert [row.columns["answer"] for row in RowStream(streamed)] == ["None"] * 2
    assert len(load_datasets(command("grpo", *words, "--config", str(tmp_path / "one.yaml")))[0]) == 2
    with pytest.raises(ConfigError, match="data_files has no effect beside the datasets of"):
        command("grpo", "--config", str(tmp_path / "mix.yaml"), "--data_files", "x")
    with pytest.raises(ConfigError, match="no effect on the built-in data set geometry"):
        load_datasets(command("grpo", "--dataset_name", "geometry", "--data_dir", "x"))


def test_text_of_another_column(folder: Path) -> None:
    words = ["--dataset_name", str(folder), "--dataset_text_field"]
    records, _ = load_datasets(command("sft", *words, "question"))
    assert "question" in records.column_names
    with pytest.raises(DataError, match="sft learns from"):
        load_datasets(command("sft", *words, "questoin"))


def test_a_stream(folder: Path) -> None:
    words = [
        *ASKED,
        "--solution_column",
        "answer",
        "--dataset_name",
        str(folder),
        "--dataset_streaming",
        "--max_steps",
        "1",
    ]
    train, _ = load_datasets(command("grpo", *words, "--system_prompt", "Look."))
    read = list(RowStream(train))
    assert [row.columns["solution"] for row in read] == list(COLORS)
    assert [message["role"] for message in read[5].prompt] == ["system", "user"]  # pyright: ignore[reportArgumentType]
    assert read[5].images[0].size == (8, 6)


class TestMixture:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> Path:
        """Rows that hold their images, under other names than the table's."""
        given = [{"image": Image.new("RGB", (4, 4), color), "text": "what?", "right": color} for color in COLORS[:4]]
        datasets.DatasetDict({"dev": datasets.Dataset.from_list(given)}).save_to_disk(tmp_path / "stored")
        return tmp_path / "stored"

    def mixed(self, tmp_path: Path, parts: list[dict[str, Any]], *words: str) -> Any:
        (tmp_path / "mix.yaml").write_text(json.dumps({"datasets": parts}))
        return load_datasets(command("grpo", "--config", str(tmp_path / "mix.yaml"), *words))

    def parts(self, folder: Path, stored: Path) -> list[dict[str, Any]]:
        keep = ["prompt", "image", "solution"]
        names = {"image_column": "photo", "prompt_column": "question", "solution_column": "answer"}
        own = {"prompt_column": "text", "solution_column": "right"}
        return [
            {"path": str(folder), "split": "train[:5]", "columns": keep, **names},
            {"path": str(stored), "split": "dev", "columns": keep, **own},
        ]

    def test_tables_with_names_of_their_own(self, tmp_path: Path, folder: Path, stored: Path) -> None:
        train, _ = self.mixed(tmp_path, self.parts(folder, stored))
        read = rows(train)
        assert [row.columns["solution"] for row in read] == [*COLORS[:5], *COLORS[:4]]
        assert [row.images[0].size for row in read] == [(8, 6)] * 5 + [(4, 4)] * 4
        assert read[8].prompt[0]["content"][1]["text"] == "what?"  # pyright: ignore[reportArgumentType]

    def test_shares(self, tmp_path: Path, folder: Path, stored: Path) -> None:
        parts = self.parts(folder, stored)
        train, test = self.mixed(
            tmp_path,
            [{**parts[0], "fraction": 1}, {**parts[1], "fraction": 3}],
            "--eval_strategy",
            "steps",
            "--test_split_size",
            "1",
        )
        # Four of the second are all there are, so a third as many of the first.
        assert sorted([*train["solution"], *test["solution"]]) == sorted([COLORS[0], *COLORS[:4]])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fraction": 0.5}, "every part has a fraction above 0, or none has"),
            ({"weigth": 0.5}, "a part has no option 'weigth'"),
            ({"columns": ["prompt", "solutoin"]}, "has no column 'solutoin', only"),
            ({"columns": ["prompt", "image"], "solution_column": "amount"}, None),
        ],
    )
    def test_bad_parts(
        self, tmp_path: Path, folder: Path, stored: Path, change: dict[str, Any], message: str | None
    ) -> None:
        parts = self.parts(folder, stored)
        parts[0] |= change
        if message is None:  # a column that only some have is empty in the others
            assert rows(self.mixed(tmp_path, parts)[0])[0].columns["solution"] is None
            return
        with pytest.raises((ConfigError, DataError)) as caught:
            self.mixed(tmp_path, parts)
        assert message in str(caught.value)
