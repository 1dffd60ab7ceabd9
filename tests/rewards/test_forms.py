"""What an answer may look like: every line of the table of docs/reference/rewards.md, which is made from the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boresight.rewards import Scorer, check_gold
from boresight.rewards.check_boxes import check_boxes
from boresight.rewards.function import load_reward
from boresight.types import EncodedImage

FORMS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "docs" / "answers.json").read_text())
SIZE = (640, 480)


def marks(form: dict[str, Any], texts: list[str]) -> list[Any]:
    column = "bbox" if form["reward"] in ("iou_reward", "point_in_box_reward") else "solution"
    columns = {column: [form["gold"]] * len(texts)} | (
        {"image_sizes": [[SIZE]] * len(texts)} if column == "bbox" else {}
    )
    return load_reward(form["reward"])([f"<think>so</think><answer>{text}</answer>" for text in texts], **columns)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form['reward']}: {form['kind']}")
def test_a_way_of_writing(form: dict[str, Any]) -> None:
    assert dict(zip(form["right"], marks(form, form["right"]), strict=True)) == dict.fromkeys(form["right"], 1)
    wrong = dict(zip(form["wrong"], marks(form, form["wrong"]), strict=True))
    assert wrong and all(mark < 1 for mark in wrong.values()), wrong


@pytest.mark.parametrize(
    "reward", ["exact_answer_reward", "choice_letter_reward", "numeric_answer_reward", "accuracy_reward"]
)
def test_no_documented_form_alarms_the_gold_check(make_group, reward: str) -> None:
    """Not as a gold, whatever the gold's way of writing."""
    golds = [gold for form in FORMS if form["reward"] == reward for gold in (form["gold"], *form["right"])]
    (check,) = check_gold(
        Scorer(reward), [make_group([], index=index, solution=gold).prompt for index, gold in enumerate(golds)]
    )
    assert check.is_sound and check.num_rows == len(golds), str(check)


def test_no_documented_box_alarms_the_check(make_group) -> None:
    image = EncodedImage(b"", "p", SIZE)
    golds = [form["gold"] for form in FORMS if form["reward"] == "iou_reward"]
    prompts = [make_group([], index=index, images=[image], bbox=gold).prompt for index, gold in enumerate(golds)]
    (check,) = check_boxes(Scorer("iou_reward"), prompts)
    assert check.is_sound and check.num_rows == len(golds), str(check)
