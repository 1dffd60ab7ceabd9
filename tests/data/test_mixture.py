"""Data sets mixed from Python; tests/cli/test_rows.py has the same from flags and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import pytest

from boresight.data import DatasetConfig, DatasetMixtureConfig, get_dataset
from boresight.data.mixture import read_dataset
from boresight.errors import ConfigError, DataError, SplitError


def numbers(start: int, stop: int, **more: Any) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"prompt": str(number), **more} for number in range(start, stop)])


def part(start: int, stop: int, **options: Any) -> DatasetConfig:
    return DatasetConfig(numbers(start, stop), **options)


def test_one_after_another() -> None:
    assert get_dataset(DatasetMixtureConfig([part(0, 2), part(5, 7)]))["train"]["prompt"] == ["0", "1", "5", "6"]


def test_shares_take_no_row_twice() -> None:
    mixed = get_dataset(DatasetMixtureConfig([part(0, 9, fraction=1), part(10, 14, fraction=2)]))
    assert mixed["train"]["prompt"] == ["0", "1", "10", "11", "12", "13"]


def test_rows_set_aside_depend_on_the_seed_alone() -> None:
    mixture = DatasetMixtureConfig([part(0, 6), part(6, 10)], test_split_size=0.3)
    first, again, other = (get_dataset(mixture, seed=seed) for seed in (1, 1, 2))
    assert (len(first["train"]), len(first["test"])) == (7, 3)
    assert first["test"]["prompt"] == again["test"]["prompt"] != other["test"]["prompt"]
    assert {*first["train"]["prompt"], *first["test"]["prompt"]} == {str(number) for number in range(10)}


def test_the_columns_of_each_are_checked() -> None:
    seen: list[Sequence[str]] = []
    mixture = DatasetMixtureConfig([part(0, 1), DatasetConfig(numbers(0, 1, solution="a"))])
    train = get_dataset(mixture, check=seen.append)["train"]
    assert seen == [["prompt"], ["prompt", "solution"]]
    assert train["solution"] == [None, "a"]


def test_no_such_split_is_an_error_of_its_own() -> None:
    splits = datasets.DatasetDict({"train": numbers(0, 2), "dev": numbers(2, 3)})
    assert read_dataset(DatasetConfig(splits, split="dev"))["prompt"] == ["2"]
    with pytest.raises(SplitError, match="has no split 'test', only train, dev"):
        read_dataset(DatasetConfig(splits, split="test"))


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (DatasetMixtureConfig([part(0, 2, fraction=1), part(0, 2)]), r"or none has; they are \[1, None\]"),
        (DatasetMixtureConfig([part(0, 2, fraction=0)]), "every part has a fraction above 0"),
        (DatasetMixtureConfig([part(0, 2)], test_split_size=2), "test_split_size=2 is neither a share below 1 nor"),
        (DatasetMixtureConfig([part(0, 2, columns=["solution"])]), "has no column 'solution', only prompt"),
    ],
)
def test_what_cannot_be_mixed(mixture: DatasetMixtureConfig, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        get_dataset(mixture)
