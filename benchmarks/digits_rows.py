"""The demo's digits as rows that boresight's and TRL's trainers take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features, Image, Value

from boresight.demo.digits import QUESTION, demonstrations, load_digits
from boresight.demo.easy_vqa import FEATURES

Row = dict[str, Any]


def split_rows(edge: int, num_rows: int | None = None) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, the same at every call. Images are enlarged to edge × edge pixels.

    Args:
        num_rows: of training, and a third as many held out; None for all.
    """
    num_test = None if num_rows is None else num_rows // 3
    return (
        load_digits("train", num_rows=num_rows, edge=edge).to_list(),
        load_digits("test", num_rows=num_test, edge=edge).to_list(),
    )


def scheduled(rows: Sequence[Row], num: int, seed: int) -> list[Row]:
    """The first `num` rows of epochs in random order: what a run without shuffling learns from, whosever trainer it is."""
    chooser, chosen = random.Random(seed), []
    while len(chosen) < num:
        epoch = list(rows)
        chooser.shuffle(epoch)
        chosen += epoch
    return chosen[:num]


def for_boresight(rows: Sequence[Row], *, demonstrated: bool = False) -> Dataset:
    data = Dataset.from_list(list(rows), features=FEATURES)
    return demonstrations(data) if demonstrated else data


def for_trl(rows: Sequence[Row]) -> Dataset:
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": message, "image": Image(), "solution": Value("string")})
    prompt = [{"role": "user", "content": QUESTION}]
    return Dataset.from_list(
        [{"prompt": prompt, "image": row["image"], "solution": row["solution"]} for row in rows], features=features
    )
