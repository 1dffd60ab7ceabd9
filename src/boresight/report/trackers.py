"""Completions with their images, in the trackers that `report_to` names.

transformers' own callbacks log the metrics. These trackers get completions too:

| tracker | where |
|---|---|
| wandb | `completions`, a table with a column for each image |
| trackio | `completions`, a table whose `images` column holds the images |
| tensorboard | `completions` under Text, `completions/image_<n>` under Images |
| mlflow | the artifacts `completions/step_<n>.json` and `images/<digest>.<ext>` |
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

COLUMNS = ("step", "row", "prompt", "completion", "reward", "advantage", "length", "truncated")
NAME = "completions"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Rows = Sequence[dict[str, Any]]


def log_completions(callbacks: Iterable[Any], rows: pa.Table, images: str | Path, *, step: int) -> list[str]:
    """Log completions to the active trackers.

    Args:
        callbacks: a trainer's; trackers are recognised by their class names.
        rows: of one step, as `CompletionStore.add` returns them.
        images: the folder of the run's images.
        step: the step under which they are logged.

    Returns:
        The names of the trackers that logged them.
    """
    shown = [_row(row) for row in rows.to_pylist()]
    names = rows["images"].to_pylist()
    taken = []
    for callback in callbacks:
        known = TRACKERS.get(type(callback).__name__)
        if known is not None and known[1](
            callback, shown, [[Path(images) / name for name in each] for each in names], step
        ):
            taken.append(known[0])
    return taken


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A completion's row in a tracker's table."""
    rewards = {name: value for name, value in row.items() if name.startswith("rewards/")}
    return {name: row[name] for name in COLUMNS if name in row} | rewards


def _to_wandb(callback: Any, rows: Rows, images: Sequence[Sequence[Path]], step: int) -> bool:
    wandb = callback._wandb
    if wandb.run is None:
        return False
    most = max((len(each) for each in images), default=0)
    data = [
        [*row.values(), *(wandb.Image(str(path)) for path in own), *[None] * (most - len(own))]
        for row, own in zip(rows, images, strict=True)
    ]
    columns = [*rows[0], *(f"image_{place + 1}" for place in range(most))]
    # Logged under the step as transformers' callback logs its metrics.
    wandb.log({NAME: wandb.Table(columns=columns, data=data), "train/global_step": step})
    return True


def _to_trackio(callback: Any, rows: Rows, images: Sequence[Sequence[Path]], step: int) -> bool:
    if not callback._initialized:
        return False
    import pandas  # here, because only trackio needs it, and it is slow to import

    trackio = callback._trackio
    frame = pandas.DataFrame(rows)
    frame["images"] = [[trackio.Image(path) for path in own] for own in images]
    trackio.log({NAME: trackio.Table(dataframe=frame), "train/global_step": step})
    return True


def _to_tensorboard(callback: Any, rows: Rows, images: Sequence[Sequence[Path]], step: int) -> bool:
    writer = callback.tb_writer
    if writer is None:
        return False
    distinct = list(dict.fromkeys(path for own in images for path in own))
    number = {path: place for place, path in enumerate(distinct, 1)}
    columns = [*rows[0], "images"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row, own in zip(rows, images, strict=True):
        cells = [*map(_cell, row.values()), ", ".join(f"image_{number[path]}" for path in own)]
        lines.append("| " + " | ".join(cells) + " |")
    writer.add_text(NAME, "\n".join(lines), step)
    for path, place in number.items():
        with Image.open(path) as image:
            writer.add_image(f"{NAME}/image_{place}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
    return True


def _cell(value: Any) -> str:
    """A cell of a Markdown table: no text ends the cell or the line, and none is taken for markup."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "–" if value is None else html.escape(str(value))
    text = text.replace("|", "&#124;").replace("`", "&#96;")
    # Every line separator that str.splitlines knows (\r, \v, \f, \x1c, \u2028, …) would end the row.
    return "<br>".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", line) for line in text.splitlines())


def _to_mlflow(callback: Any, rows: Rows, images: Sequence[Sequence[Path]], step: int) -> bool:
    mlflow = callback._ml_flow
    if mlflow.active_run() is None:
        return False
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["images"] = [", ".join(f"images/{path.name}" for path in own) for own in images]
    mlflow.log_table(columns, artifact_file=f"{NAME}/step_{step:08d}.json")
    for path in dict.fromkeys(path for own in images for path in own):
        mlflow.log_artifact(str(path), artifact_path="images")
    return True


TRACKERS: dict[str, tuple[str, Callable[[Any, Rows, Sequence[Sequence[Path]], int], bool]]] = {
    "WandbCallback": ("wandb", _to_wandb),
    "TrackioCallback": ("trackio", _to_trackio),
    "TensorBoardCallback": ("tensorboard", _to_tensorboard),
    "MLflowCallback": ("mlflow", _to_mlflow),
}
"""transformers' callback → the tracker, and the function that logs completions to it."""
