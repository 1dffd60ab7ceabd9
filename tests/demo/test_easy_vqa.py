"""The real images of easy-VQA, balanced until a guesser who never looks is at chance."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from boresight.demo import easy_vqa
from boresight.demo.easy_vqa import (
    ANSWERS,
    KIND,
    blind_accuracy,
    block_counts,
    demonstrations,
    load_easy_vqa,
    question_text,
    read_questions,
    scenes_of,
)
from boresight.errors import DataError
from boresight.rewards import answer_format_reward


@pytest.fixture(scope="module")
def test_rows() -> Dataset:
    return load_easy_vqa("test")


@pytest.fixture(scope="module")
def train_rows() -> Dataset:
    return load_easy_vqa("train")


def answers_by_wording(rows: Dataset) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    for prompt, answer in zip(rows["prompt"], rows["solution"], strict=True):
        counts.setdefault(question_text(prompt), Counter())[answer] += 1
    return counts


@pytest.mark.parametrize("split", ["train_rows", "test_rows"])
def test_no_wording_favours_an_answer(request: pytest.FixtureRequest, split: str) -> None:
    rows = request.getfixturevalue(split)
    counts = answers_by_wording(rows)
    assert len(counts) > 100  # of 107; a draw may miss a rare one
    for wording, answers in counts.items():
        kind = KIND[next(iter(answers))]
        assert set(answers) == set(ANSWERS[kind]), wording
        assert len(set(answers.values())) == 1, wording


def test_a_blind_guesser_is_at_chance(test_rows: Dataset) -> None:
    """880 of 8, 882 of 3 and 878 of 2 possible answers."""
    assert Counter(test_rows["kind"]) == {"color": 880, "shape": 882, "yes/no": 878}
    assert blind_accuracy(test_rows) == pytest.approx((880 / 8 + 882 / 3 + 878 / 2) / 2640)


def test_the_guesser_is_stronger_than_any_learnt_on_train(train_rows: Dataset, test_rows: Dataset) -> None:
    learnt = {wording: answers.most_common(1)[0][0] for wording, answers in answers_by_wording(train_rows).items()}
    right = sum(
        learnt[question_text(prompt)] == answer
        for prompt, answer in zip(test_rows["prompt"], test_rows["solution"], strict=True)
    )
    assert right / len(test_rows) <= blind_accuracy(test_rows)


def test_unbalanced_a_blind_guesser_is_right_two_times_in_three() -> None:
    rows = load_easy_vqa("test", balanced=False)
    assert len(rows) == 9673
    assert blind_accuracy(rows) == pytest.approx(0.678, abs=5e-4)


def test_test_images_are_never_in_train(train_rows: Dataset, test_rows: Dataset) -> None:
    seen = {image["bytes"] for image in train_rows["image"]}
    held_out = {image["bytes"] for image in test_rows["image"]}
    assert len(seen) > 3000
    assert len(held_out) > 800
    assert not seen & held_out


def test_a_row(test_rows: Dataset) -> None:
    row: dict[str, Any] = test_rows[0]
    assert list(row) == ["prompt", "image", "solution", "kind"]
    (turn,) = row["prompt"]
    assert turn["role"] == "user"
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert row["kind"] == KIND[row["solution"]]
    assert isinstance(row["image"]["bytes"], bytes)
    assert Image.open(BytesIO(row["image"]["bytes"])).size == (64, 64)


def test_images_belong_to_their_questions() -> None:
    """The colour that the answer names is in the image, whose background is pale."""
    named = {
        "red": (255, 0, 0),
        "blue": (0, 0, 255),
        "black": (0, 0, 0),
        "yellow": (255, 255, 0),
        "teal": (0, 128, 128),
    }
    rows = load_easy_vqa("test", num_rows=200, seed=5).to_list()
    named_rows = [row for row in rows if row["solution"] in named]
    assert len(named_rows) > 20
    for row in named_rows:
        pixels = np.asarray(Image.open(BytesIO(row["image"]["bytes"])).convert("RGB"))
        assert (pixels == named[row["solution"]]).all(-1).sum() > 20


@pytest.mark.parametrize("num_rows", [2, 3, 13, 100, 1000, 1001])
def test_num_rows_is_exact_and_stays_balanced(num_rows: int) -> None:
    rows = load_easy_vqa("test", num_rows=num_rows, seed=1)
    assert len(rows) == num_rows
    kinds = Counter(rows["kind"])
    chance = sum(kinds[kind] / len(answers) for kind, answers in ANSWERS.items()) / num_rows
    assert blind_accuracy(rows) == pytest.approx(chance)
    assert num_rows < 100 or max(kinds.values()) - min(kinds.values()) <= 8


@pytest.mark.parametrize("num_rows", range(2, 60))
def test_blocks_add_up(num_rows: int) -> None:
    counts = block_counts(num_rows)
    assert min(counts.values()) >= 0
    assert sum(count * len(ANSWERS[kind]) for kind, count in counts.items()) == num_rows


def test_the_seed_draws_and_orders() -> None:
    first, again, other = (load_easy_vqa("test", num_rows=50, seed=seed).to_list() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(
    ("num_rows", "balanced", "message"),
    [(5000, True, "2640 rows at most"), (10_000, False, "has 9673 questions"), (1, True, "whole blocks")],
)
def test_more_than_there_is(num_rows: int, balanced: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_easy_vqa("test", num_rows=num_rows, balanced=balanced)


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(easy_vqa, "files", missing)
    easy_vqa.chosen_questions.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'boresight\[demo\]'"):
        load_easy_vqa("train")


@pytest.mark.parametrize(
    ("asked", "scene"),
    [
        ([("what color is the shape?", "blue"), ("what shape is present?", "circle")], "a blue circle"),
        ([("what is the color of the rectangle?", "gray")], "a gray shape"),
        ([("what is the teal shape?", "circle")], "a circle"),
        ([("is there a red shape?", "yes"), ("is there a circle?", "no")], "a red shape"),
        ([("is there a red shape?", "no")], "a shape"),
        ([("is no black shape present?", "no")], "a black shape"),
        ([("does the image not contain a circle?", "no")], "a circle"),
        ([("does the image not contain a circle?", "yes"), ("is there not a teal shape?", "yes")], "a shape"),
    ],
)
def test_what_questions_tell_of_their_image(asked: list[tuple[str, str]], scene: str) -> None:
    other = easy_vqa.Question("what color is the shape?", "green", 4)
    assert scenes_of([easy_vqa.Question(text, answer, 3) for text, answer in asked] + [other])[3] == scene


def test_no_image_is_told_two_ways() -> None:
    """Every answer about an image agrees with the scene that all of them make together."""
    questions = read_questions("train")
    scenes = scenes_of(questions)
    for question in questions:
        if KIND[question.answer] != "yes/no":
            assert question.answer in scenes[question.image].split()


def test_demonstrations_end_in_the_answer(test_rows: Dataset) -> None:
    rows = demonstrations(test_rows.select(range(100)), "test")
    assert rows.column_names == ["prompt", "image", "solution", "kind", "completion"]
    for row in rows.to_list():
        (turn,) = row["completion"]
        assert turn["role"] == "assistant"
        text = turn["content"][0]["text"]
        assert text.startswith("<think>a ")
        assert text.endswith(f"</think><answer>{row['solution']}</answer>")
        assert answer_format_reward([[turn]]) == [1.0]
        assert isinstance(row["image"]["bytes"], bytes)
