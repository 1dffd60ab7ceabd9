"""Data sets that a command line may name, made from what is installed: nothing is downloaded."""

from __future__ import annotations

from datasets import Dataset

from boresight.demo.easy_vqa import Split, load_easy_vqa
from boresight.demo.geometry import load_geometry, sample_question
from boresight.errors import DataError

NAMES = {
    "easy_vqa": "real pictures of one coloured shape each, 2,640 balanced questions in the test split (pip install 'boresight[demo]')",
    "geometry": "figures of two tangents, drawn on the spot, with four options",
    "geometry_sample": "one question about such a figure, as a school book puts it",
}


def load_built_in(name: str, *, split: str = "test", num_rows: int | None = None, seed: int = 0) -> Dataset:
    """The rows of a built-in data set.

    Args:
        name: of `NAMES`.
        split: train or test.
        num_rows: None: 200 of `geometry`, which has no end, and all of the others.
        seed: of the draw.

    Raises:
        DataError: no such split, or fewer rows than asked for.
    """
    if split not in ("train", "test"):
        raise DataError(f"{name} has the splits train and test, and no {split!r}.")
    which: Split = split  # pyright: ignore[reportAssignmentType]
    if name == "easy_vqa":
        return load_easy_vqa(which, num_rows=num_rows, seed=seed)
    if name == "geometry":
        return load_geometry(which, num_rows=200 if num_rows is None else num_rows, seed=seed)
    if num_rows not in (None, 1):
        raise DataError(f"num_rows={num_rows}: geometry_sample is one question; geometry makes as many as you like.")
    return sample_question()
