"""scikit-learn's handwritten digits as rows that boresight's and TRL's trainers take.

The 1,797 images of 8×8 pixels come with scikit-learn, which is no dependency: install it, or pass its `digits.csv.gz`. Quick runs draw
digits of their own.
"""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw

QUESTION = "which digit?"
DEMONSTRATION = "<think>it is a {0}</think><answer>{0}</answer>"
NUM_HELD_OUT = 300

Row = dict[str, Any]


def packaged_table() -> Path:
    """Where scikit-learn keeps the digits.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ImportError("scikit-learn is not installed: install it, or pass its digits.csv.gz by --table.")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def read_digits(table: Path) -> tuple[NDArray[np.float64], list[int]]:
    """[N, 8, 8] pixels from 0 to 16, and what each shows."""
    with gzip.open(table, "rt") as file:
        values = np.loadtxt(file, delimiter=",")
    return values[:, :64].reshape(-1, 8, 8), values[:, 64].astype(int).tolist()


def draw_digits(num: int) -> tuple[NDArray[np.float64], list[int]]:
    """The same shapes, drawn in the built-in font a little off their place, with noise."""
    generator = np.random.default_rng(0)
    pixels, labels = [], []
    for number in range(num):
        canvas = PILImage.new("L", (12, 16))
        place = tuple(generator.integers(0, 4, 2).tolist())
        ImageDraw.Draw(canvas).text(place, str(number % 10), fill=255)
        small = np.asarray(canvas.resize((8, 8)), dtype=np.float64) / 16
        pixels.append(np.clip(small + generator.normal(0, 1, (8, 8)), 0, 16))
        labels.append(number % 10)
    return np.stack(pixels), labels


def split_rows(pixels: NDArray[np.float64], labels: Sequence[int], edge: int) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, the same at every call. Images are enlarged to edge × edge pixels."""
    rows = []
    for number in np.random.RandomState(0).permutation(len(labels)).tolist():
        image = PILImage.fromarray((pixels[number] * 255 / 16).astype("uint8")).convert("RGB")
        file = io.BytesIO()
        image.resize((edge, edge), PILImage.Resampling.NEAREST).save(file, "png")
        rows.append(
            {"image": {"bytes": file.getvalue(), "path": f"{number}.png"}, "solution": str(int(labels[number]))}
        )
    held_out = min(NUM_HELD_OUT, len(rows) // 4)
    return rows[held_out:], rows[:held_out]


def scheduled(rows: Sequence[Row], num: int, seed: int) -> list[Row]:
    """The first `num` rows of epochs in random order: what a run without shuffling learns from, whosever trainer it is."""
    chooser, chosen = random.Random(seed), []
    while len(chosen) < num:
        epoch = list(rows)
        chooser.shuffle(epoch)
        chosen += epoch
    return chosen[:num]


def for_boresight(rows: Sequence[Row], *, demonstrated: bool = False) -> Dataset:
    message = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
    features = {"prompt": message, "image": Image(decode=False), "solution": Value("string")}
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    records = [{"prompt": [{"role": "user", "content": parts}], **row} for row in rows]
    if demonstrated:
        features["completion"] = message
        for record in records:
            text = DEMONSTRATION.format(record["solution"])
            record["completion"] = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
    return Dataset.from_list(records, features=Features(features))


def for_trl(rows: Sequence[Row]) -> Dataset:
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": message, "image": Image(), "solution": Value("string")})
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": QUESTION}], **row} for row in rows], features=features
    )
