"""Handwritten digits: real data small enough for two cores, on which a policy that stops to give some answers is easily seen.

The package `scikit-learn` on PyPI (BSD) carries the test part of the Optical Recognition of Handwritten Digits data (Alpaydin and
Kaynak, UCI, CC BY 4.0): 1,797 digits of 8×8 pixels by 13 writers. Its table is read without importing the package.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features
from PIL import Image as PILImage

from boresight.demo.easy_vqa import FEATURES, MESSAGES, Split
from boresight.errors import DataError

ANSWERS = tuple("0123456789")
QUESTION = "which digit?"
EDGE = 32
"""Pixels along an image. SFT reaches the same accuracy far later with larger ones, of which a small model sees more patches."""
NUM_HELD_OUT = 300


def load_digits(split: Split, *, num_rows: int | None = None, seed: int = 0, edge: int = EDGE) -> Dataset:
    """Digits as rows that trainers take: 1,497 to train on and 300 held out, the same at every call.

    Args:
        split: train or test.
        num_rows: exactly this many, chosen at random. None for all.
        seed: of the choice and of the order.
        edge: pixels along an image.

    Returns:
        Columns `prompt` (a conversation of one turn, the image before the question), `image` (PNG bytes, not decoded), `solution` (the
        digit) and `kind` (digit).

    Raises:
        DataError: scikit-learn is not installed, or has fewer digits than `num_rows`.
    """
    values = np.loadtxt(io.StringIO(gzip.decompress(_table().read_bytes()).decode()), delimiter=",")
    order = np.random.RandomState(0).permutation(len(values)).tolist()
    numbers = order[:NUM_HELD_OUT] if split == "test" else order[NUM_HELD_OUT:]
    random.Random(seed).shuffle(numbers)
    if num_rows is not None and not 1 <= num_rows <= len(numbers):
        raise DataError(f"num_rows={num_rows}: the {split} split has {len(numbers)} digits, and a choice at least 1.")
    rows = [
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
            "image": {"bytes": _png(values[number, :64].reshape(8, 8), edge), "path": f"{split}/{number}.png"},
            "solution": str(int(values[number, 64])),
            "kind": "digit",
        }
        for number in numbers[:num_rows]
    ]
    return Dataset.from_list(rows, features=FEATURES)


def demonstrations(dataset: Dataset) -> Dataset:
    """The rows with a `completion` for SFT: ``<think>it is a 3</think><answer>3</answer>``."""

    def demonstrated(row: dict[str, Any]) -> dict[str, Any]:
        text = f"<think>it is a {row['solution']}</think><answer>{row['solution']}</answer>"
        return {"completion": [{"role": "assistant", "content": [{"type": "text", "text": text}]}]}

    features = Features({**dataset.features, "completion": MESSAGES})
    return dataset.map(demonstrated, features=features, load_from_cache_file=False)


def _table() -> Path:
    """Where scikit-learn keeps the digits."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("The digits come with scikit-learn, which is not installed: pip install 'boresight[digits]'")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _png(pixels: Any, edge: int) -> bytes:
    """[8, 8] values from 0 to 16, enlarged."""
    file = io.BytesIO()
    image = PILImage.fromarray((pixels * 255 / 16).astype("uint8")).convert("RGB")
    image.resize((edge, edge), PILImage.Resampling.NEAREST).save(file, "png")
    return file.getvalue()
