"""`on_bad_row` in a whole trainer: what is refused, dropped, kept as text, written down and reported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from boresight import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from boresight.data import RowDataset
from boresight.errors import DataError

from .conftest import QUIET, records, vowel_share

ANSWER = [{"role": "assistant", "content": "red"}]


def demonstrations() -> list[dict[str, Any]]:
    """Eight rows, of which three cannot be used: an image is missing, the prompt fills max_length, there is no answer."""
    rows = [{"prompt": row["prompt"], "image": row["image"], "completion": ANSWER} for row in records(8)]
    rows[2] |= {"image": "missing.png"}
    rows[4] |= {"prompt": [{"role": "user", "content": "long " * 200}]}
    del rows[6]["completion"]
    return rows


def trainer(folder: Path, out: Path, policy: str, **options: Any) -> SFTTrainer:
    config = SFTConfig(
        **QUIET, output_dir=str(out), max_length=150, on_bad_row=policy, per_device_train_batch_size=2, **options
    )  # pyright: ignore[reportArgumentType]
    return SFTTrainer(str(folder), config, demonstrations(), eval_dataset=demonstrations()[:3])


def test_an_error_names_all_before_a_step(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        trainer(model_folder, tmp_path, "error")
    lines = str(error.value).splitlines()
    assert lines[0] == "3 of 8 rows cannot be used:"
    assert [line.split(":")[0].split(",")[0] for line in lines[1:]] == ["row 2", "row 4", "row 6"]
    assert "max_length (150)" in lines[2] and "0 completions" in lines[3]


@pytest.mark.parametrize(("policy", "num_rows"), [("drop", 5), ("keep_text", 6)])
def test_a_run_of_what_is_left(model_folder: Path, tmp_path: Path, policy: str, num_rows: int) -> None:
    run = trainer(model_folder, tmp_path, policy, max_steps=2)
    assert len(run.train_dataset) == num_rows
    run.train()
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    done = "kept as text" if policy == "keep_text" else "dropped"
    assert [(line["data_set"], line["row"], line["done"]) for line in lines] == [
        ("train", 2, done),
        ("train", 4, "dropped"),
        ("train", 6, "dropped"),
        ("eval", 2, done),
    ]
    assert len(run.eval_dataset) == (3 if policy == "keep_text" else 2)
    images = [len(RowDataset(run.train_dataset)[place].images) for place in range(3)]
    assert images[2] == (0 if policy == "keep_text" else len(RowDataset(run.train_dataset)[2].images))


def test_one_percent_of_corrupt_images(model_folder: Path, tmp_path: Path) -> None:
    """Cut in their data, zeroed, or replaced by text: the run of the others has its steps, and the quarantine names these and no others."""
    stream = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(stream, "JPEG")
    whole = stream.getvalue()
    damaged = {41: whole[: len(whole) // 2], 137: b"not an image", 203: whole[:20] + bytes(len(whole) - 20)}
    rows = [
        {"prompt": [{"role": "user", "content": "what?"}], "image": damaged.get(index, whole), "completion": ANSWER}
        for index in range(300)
    ]
    options: dict[str, Any] = {
        **QUIET,
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 99,
        "num_train_epochs": 1,
    }
    run = SFTTrainer(str(model_folder), SFTConfig(**options, on_bad_row="drop"), rows)
    run.train()
    assert (len(run.train_dataset), run.state.global_step) == (297, 3)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [41, 137, 203]
    assert all(line["reason"].startswith(f"row {line['row']}") for line in lines)


def test_a_column_named_like_an_argument_of_rewards(model_folder: Path, tmp_path: Path) -> None:
    rows = records(4)
    rows[3]["completions"] = "x"
    config = GRPOConfig(
        **QUIET, output_dir=str(tmp_path), num_generations=2, num_prompts_per_step=2, max_completion_length=4
    )
    with pytest.raises(DataError, match="row 3: the column 'completions' has a name"):
        GRPOTrainer(str(model_folder), vowel_share, config, rows)
