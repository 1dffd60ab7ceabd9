"""Handwritten digits as rows."""

from __future__ import annotations

import importlib.util
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from boresight.demo.digits import demonstrations, load_digits
from boresight.errors import DataError


def test_what_scikit_learn_calls_a_digit() -> None:
    """Each row's pixels and answer are those of the package's own loader."""
    from sklearn.datasets import load_digits as packaged

    images, answers = packaged(return_X_y=True)
    rows = [*load_digits("train"), *load_digits("test")]
    assert len(rows) == len({row["image"]["path"] for row in rows}) == 1797
    for row in rows[::50]:
        number = int(row["image"]["path"].split("/")[1].removesuffix(".png"))
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.size == (32, 32) and image.mode == "RGB"
        small = np.asarray(image)[::4, ::4, 0]
        assert (small == (images[number].reshape(8, 8) * 255 / 16).astype("uint8")).all()
        assert row["solution"] == str(answers[number])


def test_a_split_is_fixed_and_the_seed_chooses_rows() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1497, 300)
    assert not {row["bytes"] for row in train["image"]} & {row["bytes"] for row in test["image"]}
    assert min(Counter(test["solution"]).values()) == 19
    few, again, other = (load_digits("train", num_rows=9, seed=seed).to_list() for seed in (1, 1, 2))
    assert few == again != other
    assert all(row in train.to_list() for row in few)


def test_a_demonstration_says_the_digit_twice() -> None:
    for row in demonstrations(load_digits("test", num_rows=5)):
        (message,) = row["completion"]
        text = f"<think>it is a {row['solution']}</think><answer>{row['solution']}</answer>"
        assert message == {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize("num_rows", [0, 301])
def test_more_digits_than_there_are(num_rows: int) -> None:
    with pytest.raises(DataError, match=f"num_rows={num_rows}: the test split has 300 digits"):
        load_digits("test", num_rows=num_rows)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    with pytest.raises(DataError, match=r"pip install 'boresight\[digits\]'"):
        load_digits("train")
