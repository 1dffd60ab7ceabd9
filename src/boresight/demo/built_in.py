"""Built-in data sets, which the command line takes by name. They are made from installed packages: nothing is downloaded."""

from __future__ import annotations

import random
from typing import Any

from datasets import Dataset, Features

from boresight.demo import digits, easy_vqa, geometry
from boresight.demo.easy_vqa import MESSAGES, Split
from boresight.errors import DataError, SplitError

NAMES = {
    "easy_vqa": "questions about real images of one coloured shape each, balanced (pip install 'boresight[demo]')",
    "digits": "handwritten digits (pip install 'boresight[digits]')",
    "geometry": "questions about figures of two tangents, drawn on the spot, with four options",
    "geometry_sample": "one such question as a school book puts it",
    "easy_vqa_demonstrations": "easy_vqa with what the image shows, then the answer",
    "digits_demonstrations": "digits with what the image shows, then the answer",
    "geometry_demonstrations": "geometry with the working, then the letter",
    "easy_vqa_pairs": "easy_vqa_demonstrations as chosen, the same with a wrong answer as rejected",
    "digits_pairs": "digits_demonstrations as chosen, the same with a wrong answer as rejected",
    "geometry_pairs": "geometry_demonstrations as chosen, the same with a wrong letter as rejected",
}


def load_built_in(name: str, *, split: str = "train", num_rows: int | None = None, seed: int = 0) -> Dataset:
    """The rows of a built-in data set.

    Args:
        name: of `NAMES`.
        split: train or test.
        num_rows: None: 1,000 of geometry, which has no end, and all of the others.
        seed: of the choice of rows.

    Raises:
        DataError: no such split (`SplitError`), or fewer rows than asked for.
    """
    if split not in ("train", "test"):
        raise SplitError(f"{name} has the splits train and test, and no {split!r}.")
    which: Split = split  # pyright: ignore[reportAssignmentType]
    if name == "geometry_sample":
        if num_rows not in (None, 1):
            raise DataError(
                f"num_rows={num_rows}: geometry_sample is one question; geometry makes as many as you like."
            )
        return geometry.sample_question()
    if name.startswith("easy_vqa"):
        rows = easy_vqa.load_easy_vqa(which, num_rows=num_rows, seed=seed)
        shown = rows if name == "easy_vqa" else easy_vqa.demonstrations(rows, which)
    elif name.startswith("digits"):
        rows = digits.load_digits(which, num_rows=num_rows, seed=seed)
        shown = rows if name == "digits" else digits.demonstrations(rows)
    else:
        rows = geometry.load_geometry(which, num_rows=1000 if num_rows is None else num_rows, seed=seed)
        shown = rows if name == "geometry" else geometry.demonstrations(rows)
    return _pairs(shown, seed) if name.endswith("_pairs") else shown


def _pairs(demonstrated: Dataset, seed: int) -> Dataset:
    """Each demonstration as chosen, and as rejected the same with another answer, chosen at random."""
    chooser = random.Random(seed)
    answers_of = {**easy_vqa.ANSWERS, "digit": digits.ANSWERS}

    def pair(row: dict[str, Any]) -> dict[str, Any]:
        (chosen,) = row["completion"]
        (part,) = chosen["content"]
        answers = answers_of.get(row["kind"], tuple(geometry.LETTERS))
        wrong = chooser.choice([answer for answer in answers if answer != row["solution"]])
        text = part["text"].replace(f"<answer>{row['solution']}<", f"<answer>{wrong}<")
        return {
            "chosen": [chosen],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
        }

    features = Features(
        {name: kind for name, kind in demonstrated.features.items() if name != "completion"}
        | {"chosen": MESSAGES, "rejected": MESSAGES}
    )
    return demonstrated.map(pair, features=features, remove_columns=["completion"], load_from_cache_file=False)
