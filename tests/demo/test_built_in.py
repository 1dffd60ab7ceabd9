"""Data sets that a command line may name."""

from __future__ import annotations

import pytest

from boresight.data.sources import RowDataset, check_rows
from boresight.demo.built_in import NAMES, load_built_in
from boresight.errors import DataError
from boresight.rewards.choice import choice_letter_reward, exact_answer_reward

ANSWERED = {"geometry": choice_letter_reward, "easy_vqa": exact_answer_reward, "digits": exact_answer_reward}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_rows(name: str) -> None:
    num_rows = 1 if name == "geometry_sample" else 6
    rows = load_built_in(name, split="test", num_rows=num_rows, seed=2)
    assert len(rows) == num_rows and check_rows(rows) == num_rows
    assert {"prompt", "image", "solution", "kind"} <= set(rows.column_names)
    has = {"completion": name.endswith("_demonstrations"), "chosen": name.endswith("_pairs")}
    assert {column: column in rows.column_names for column in has} == has


@pytest.mark.parametrize("name", ["geometry", "easy_vqa", "digits"])
def test_pairs_are_right_against_wrong(name: str) -> None:
    """Word for word the same but for the answer."""
    data = RowDataset(load_built_in(f"{name}_pairs", num_rows=12, seed=2))
    rejected_answers = set()
    for place in range(12):
        row = data[place]
        marks = ANSWERED[name](row.completions, [row.columns["solution"]] * 2)
        assert marks == [1.0, 0.0]
        chosen, rejected = (completion[0]["content"][0]["text"] for completion in row.completions)  # pyright: ignore[reportArgumentType, reportIndexIssue]
        assert chosen.split("<answer>")[0] == rejected.split("<answer>")[0]
        rejected_answers.add(rejected.split("<answer>")[1])
    assert len(rejected_answers) > 2


def test_the_seed_draws_the_wrong_answers_too() -> None:
    one, again, other = (load_built_in("geometry_pairs", num_rows=6, seed=seed).to_list() for seed in (1, 1, 2))
    assert one == again != other


def test_splits_share_no_image() -> None:
    for name in ("geometry", "easy_vqa"):
        train, test = (load_built_in(name, split=split, num_rows=24) for split in ("train", "test"))
        assert not {row["bytes"] for row in train["image"]} & {row["bytes"] for row in test["image"]}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("geometry", {"split": "validation"}, "splits train and test, and no 'validation'"),
        ("geometry_sample", {"num_rows": 2}, "geometry_sample is one question"),
        ("geometry", {"num_rows": 0}, "at least 1"),
    ],
)
def test_what_is_not_there(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_built_in(name, **options)  # pyright: ignore[reportArgumentType]
