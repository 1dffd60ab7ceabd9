from __future__ import annotations

import dataclasses
import io
import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from boresight.errors import DataError
from boresight.report import CompletionStore, prompt_text, read_completions

CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what colour?"}]},
]


def add(store, step, groups, **options):
    num = sum(map(len, groups))
    rewards = torch.arange(num, dtype=torch.float32)
    return store.add(step, groups, rewards={"f": rewards}, reward=rewards, **options)


def test_what_is_kept(tmp_path, make_group, make_image):
    red, blue = make_image("red"), make_image("blue", "JPEG")
    groups = [
        make_group(["a b c", "d…"], index=5, prompt=CONVERSATION, images=[red, blue]),
        make_group(["e"], index=2, images=[red]),
    ]
    CompletionStore(tmp_path).add(
        7,
        groups,
        rewards={"exact": torch.tensor([1.0, math.nan, 0.5]), "format": torch.tensor([0.0, math.nan, 2.0])},
        reward=torch.tensor([1.0, math.nan, 2.5]),
        advantage=torch.tensor([-0.25, 0.0, 0.75]),
        kept=[True, False],
        logp=[[-0.5, -1.0, -2.0], [-0.25], [-3.0]],
        extra={"parsed": ["x", None, 4]},
    )
    names = [f"{red.digest}.png", f"{blue.digest}.jpeg"]
    rows = read_completions(tmp_path).to_pylist()
    shared = {"step": 7, "phase": "train", "rank": 0}
    assert rows[0] == shared | {
        "group": 0,
        "row": 5,
        "prompt": "system: be brief\nuser: <image>what colour?",
        "completion": "a b c",
        "completion_ids": [0, 1, 2],
        "length": 3,
        "truncated": False,
        "images": names,
        "reward": 1.0,
        "advantage": -0.25,
        "kept": True,
        "rewards/exact": 1.0,
        "rewards/format": 0.0,
        "logp": [-0.5, -1.0, -2.0],
        "extra/parsed": "x",
    }
    assert [row["group"] for row in rows] == [0, 0, 1]
    assert [row["kept"] for row in rows] == [True, True, False]
    assert rows[1]["truncated"] and rows[1]["reward"] is None and rows[1]["rewards/exact"] is None
    assert rows[1]["extra/parsed"] is None and rows[2]["extra/parsed"] == "4" and rows[2]["images"] == names[:1]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(names)
    assert (tmp_path / "images" / names[1]).read_bytes() == blue.source


def test_right_answers_and_further_columns_stand_beside_completions(tmp_path, make_group):
    groups = [make_group(["it is 3", "4"], index=0), make_group(["7"], index=1)]
    first, second = (group.prompt.row.columns for group in groups)
    first |= {"solution": "3", "level": 2, "text": "x" * 1200, "bytes": b"00", "nothing": None}
    second |= {"solution": None}
    table = add(CompletionStore(tmp_path), 1, groups, answers=[("3", "3"), ("4", "3"), ("7", None)])
    rows = table.to_pylist()
    assert [(row["answer"], row["right_answer"]) for row in rows] == [("3", "3"), ("4", "3"), ("7", None)]
    kept = json.loads(rows[1]["row_columns"])
    assert kept == {"level": 2, "text": "x" * 1000 + "… (1,200 characters)", "bytes": '"(bytes)"'}
    assert rows[2]["row_columns"] is None


def test_image_from_a_file_is_kept_as_it_is(tmp_path, make_group, make_image):
    image = make_image("green", "WEBP")
    path = tmp_path / "anything.bin"
    path.write_bytes(image.source)
    add(CompletionStore(tmp_path), 1, [make_group(["a"], images=[dataclasses.replace(image, source=str(path))])])
    kept = (tmp_path / "images" / f"{image.digest}.webp").read_bytes()
    assert kept == image.source and Image.open(io.BytesIO(kept)).size == (6, 4)


def test_batches_phases_and_steps_follow_one_another(tmp_path, make_group):
    store = CompletionStore(tmp_path)
    add(store, 10, [make_group(["a"]), make_group(["b"])])
    add(store, 10, [make_group(["c"])], phase="eval")
    add(store, 10, [make_group(["d"])], extra={"parsed": ["x"]})
    add(store, 9, [make_group(["e"])])
    rows = read_completions(tmp_path).to_pylist()
    assert [(row["step"], row["phase"], row["group"], row["completion"]) for row in rows] == [
        (9, "train", 0, "e"),
        (10, "train", 0, "a"),
        (10, "train", 1, "b"),
        (10, "eval", 0, "c"),
        (10, "train", 2, "d"),
    ]
    assert [row["extra/parsed"] for row in rows] == [None, None, None, None, "x"]
    assert read_completions(tmp_path, phase="eval")["completion"].to_pylist() == ["c"]


def test_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path, make_group):
    first = CompletionStore(tmp_path)
    for step in (1, 2, 3, 4):
        add(first, step, [make_group([f"first {step}"])])
    add(first, 2, [make_group(["first eval"])], phase="eval")
    add(CompletionStore(tmp_path, rank=1), 4, [make_group(["first, other rank"])])
    resumed = CompletionStore(tmp_path)
    resumed.discard_after(2)
    add(resumed, 3, [make_group(["resumed 3"])])
    add(resumed, 2, [make_group(["resumed eval"])], phase="eval")
    assert read_completions(tmp_path)["completion"].to_pylist() == ["first 1", "first 2", "resumed eval", "resumed 3"]


def test_ranks_write_side_by_side(tmp_path, make_group):
    for rank in (0, 1):
        add(CompletionStore(tmp_path, rank=rank), 1, [make_group([f"of rank {rank}"])])
    assert read_completions(tmp_path).select(["rank", "completion"]).to_pylist() == [
        {"rank": 0, "completion": "of rank 0"},
        {"rank": 1, "completion": "of rank 1"},
    ]


def test_killed_write_leaves_the_old_file(tmp_path, make_group, monkeypatch):
    store = CompletionStore(tmp_path)
    add(store, 1, [make_group(["a"])])
    path = tmp_path / "completions" / "step_00000001.parquet"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        add(store, 1, [make_group(["b"])])
    assert pq.read_table(path)["completion"].to_pylist() == ["a"]
    assert read_completions(tmp_path).num_rows == 1


def test_run_without_completions(tmp_path):
    with pytest.raises(DataError, match="holds no completions"):
        read_completions(tmp_path)


def test_prompt_text():
    assert prompt_text("plain") == "plain"
    assert prompt_text(CONVERSATION) == "system: be brief\nuser: <image>what colour?"
