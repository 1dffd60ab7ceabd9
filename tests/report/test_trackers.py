"""The trackers themselves, offline: what is handed over can be read back out of their own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from boresight.report import CompletionStore
from boresight.report.trackers import _cell, log_completions
from boresight.types import EncodedImage, Group

TEXTS = ["a | b\n<b>c</b>", "`d`…"]


@pytest.fixture
def rows(tmp_path: Path, make_group: Callable[..., Group], make_image: Callable[..., EncodedImage]) -> pa.Table:
    """Two prompts of two completions; the first one has two images, the second one shares one of them."""
    red, blue = make_image("red"), make_image("blue")
    groups = [make_group(TEXTS, index=7, images=[red, blue]), make_group(["e", "f"], index=8, images=[blue])]
    reward = torch.tensor([1.0, 0.0, 0.5, float("nan")])
    return CompletionStore(tmp_path).add(3, groups, rewards={"exact": reward}, reward=reward, advantage=reward - 0.5)


def callback(name: str, **attributes: Any) -> Any:
    """A trainer's callback as far as it is asked: its class by name, and the tracker."""
    return type(name, (), attributes)()


def test_tensorboard(rows: pa.Table, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "tb")) as writer:
        taken = log_completions([callback("TensorBoardCallback", tb_writer=writer)], rows, tmp_path / "images", step=3)
    assert taken == ["tensorboard"]
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    (text,) = events.Tensors("completions/text_summary")
    table = text.tensor_proto.string_val[0].decode().splitlines()
    assert text.step == 3 and len(table) == 2 + 4
    assert "a &#124; b<br>&lt;b&gt;c&lt;/b&gt;" in table[2] and table[2].endswith("| image_1, image_2 |")
    assert "&#96;d&#96;…" in table[3] and "| – |" in table[5] and table[5].endswith("| image_2 |")
    assert all(line.count("|") == table[0].count("|") for line in table)
    assert sorted(events.Tags()["images"]) == ["completions/image_1", "completions/image_2"]
    (image,) = events.Images("completions/image_2")
    assert (image.width, image.height) == (6, 4)


def test_wandb_offline(rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    with wandb.init(mode="offline", project="boresight", settings=wandb.Settings(silent=True, x_disable_stats=True)):
        assert log_completions([callback("WandbCallback", _wandb=wandb)], rows, tmp_path / "images", step=3) == [
            "wandb"
        ]
    staged = [path.read_bytes() for path in (tmp_path / "artifacts" / "staging").iterdir()]
    # wandb may stage what it sends more than once.
    (table,) = [json.loads(content) for content in {*staged} if content.startswith(b'{"_type": "table"')]
    assert table["columns"][-3:] == ["rewards/exact", "image_1", "image_2"]
    assert [row[3] for row in table["data"]] == [*TEXTS, "e", "f"]
    assert [row[-1] is None for row in table["data"]] == [False, False, True, True]
    assert table["data"][2][-2]["sha256"] == table["data"][0][-1]["sha256"]  # the image that both prompts share
    assert sum(content.startswith(b"\x89PNG") for content in {*staged}) == 2
    # No run is open any more.
    assert log_completions([callback("WandbCallback", _wandb=wandb)], rows, tmp_path / "images", step=3) == []


def test_trackio_on_disk(rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    trackio.init(project="boresight", name="run", auto_log_gpu=False)
    taken = log_completions(
        [callback("TrackioCallback", _trackio=trackio, _initialized=True)], rows, tmp_path / "images", step=3
    )
    trackio.finish()
    assert taken == ["trackio"]
    from trackio.sqlite_storage import SQLiteStorage

    (logged,) = SQLiteStorage.get_logs("boresight", "run")
    table = logged["completions"]["_value"]
    assert logged["train/global_step"] == 3 and [row["completion"] for row in table] == [*TEXTS, "e", "f"]
    assert [len(row["images"]) for row in table] == [2, 2, 1, 1]
    assert list((tmp_path / "trackio").rglob("*.png"))


def test_mlflow_on_disk(rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as run:
        assert log_completions([callback("MLflowCallback", _ml_flow=mlflow)], rows, tmp_path / "images", step=3) == [
            "mlflow"
        ]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    table = json.loads((artifacts / "completions" / "step_00000003.json").read_text())
    completions = [row[table["columns"].index("completion")] for row in table["data"]]
    assert completions == [*TEXTS, "e", "f"]
    images = {name for row in rows["images"].to_pylist() for name in row}
    assert {path.name for path in (artifacts / "images").iterdir()} == images


def test_trackers_that_are_not_at_work_get_nothing(rows: pa.Table, tmp_path: Path) -> None:
    resting = [
        callback("TensorBoardCallback", tb_writer=None),
        callback("ProgressCallback"),
        callback("TrackioCallback", _initialized=False),
    ]
    resting += [callback("MLflowCallback", _ml_flow=SimpleNamespace(active_run=lambda: None))]
    assert log_completions(resting, rows, tmp_path / "images", step=3) == []


@pytest.mark.parametrize("separator", ["\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_no_text_ends_a_row_of_the_table(separator: str) -> None:
    cell = _cell(f"a{separator}b\x07|`c`")
    assert cell == "a<br>b\ufffd&#124;&#96;c&#96;"
    assert len(f"| {cell} |".splitlines()) == 1
