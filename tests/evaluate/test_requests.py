"""Requests as lmms-eval makes them, answered as `boresight compare` answers the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from boresight.compare.answering import AnswerSettings, SavedModel, answer
from boresight.compare.answers import Answer
from boresight.data.images import load_image
from boresight.errors import ConfigError, DataError
from boresight.evaluate.requests import Asking, Given, answer_requests
from boresight.types import Row

DOCUMENTS = [Image.new("RGB", (32 + 4 * number, 32), color) for number, color in enumerate(("red", "teal", "white"))]
"""Of the task `colors`; its questions are about them."""
LENGTH = 6


@dataclass
class Instance:
    """What lmms-eval hands over."""

    args: tuple[Any, ...]


def request(number: int, task: str = "colors", **options: Any) -> Instance:
    def messages(document: Image.Image) -> list[dict[str, Any]]:
        parts = [{"type": "image", "url": document}, {"type": "text", "text": f"what color? {task}"}]
        return [{"role": "user", "content": parts}]

    return Instance(("", messages, {"max_new_tokens": LENGTH, **options}, number, task, "test"))


def document(task: str, split: str, number: int) -> Image.Image:
    assert split == "test"
    return DOCUMENTS[number]


def compared(source: str, *, task: str = "colors", gray: bool = False, **settings: Any) -> list[list[Answer]]:
    """What `boresight compare` hears, question by question."""
    rows = []
    for number, image in enumerate(DOCUMENTS):
        seen = Image.new("RGB", image.size, (128, 128, 128)) if gray else image
        prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"what color? {task}"}]}]
        rows.append(Row(number, prompt, completions=(), images=(load_image(seen, where="test"),), columns={}))
    found: dict[int, list[Answer]] = {}
    for batch in answer(source, rows, AnswerSettings(max_completion_length=LENGTH, **settings)):
        found |= batch
    return [found[place] for place in range(len(rows))]


def as_given(answers: list[Answer]) -> list[Given]:
    return [Given(one.text, len(one.ids), one.truncated) for one in answers]


@pytest.fixture(scope="module")
def saved(model: str) -> SavedModel:
    return SavedModel(model, AnswerSettings(batch_size=2))


def test_answers_are_those_of_compare_in_the_order_of_the_requests(saved: SavedModel, model: str) -> None:
    """Two tasks, mixed: each is asked with its own options."""
    told: list[tuple[int, int]] = []
    order = [(2, "colors"), (0, "other"), (0, "colors"), (1, "colors"), (2, "other"), (1, "other")]
    requests = [request(*each) for each in order]
    given = answer_requests(saved, requests, document, Asking(), lambda done, total: told.append((done, total)))
    heard = {task: [as_given(each)[0] for each in compared(model, task=task)] for task in ("colors", "other")}
    assert given == [heard[task][number] for number, task in order]
    assert len({each.text for each in given}) > 3  # they depend on image and question
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]


def test_blind_answers_are_those_about_gray_images(saved: SavedModel, model: str) -> None:
    requests = [request(number) for number in range(3)]
    blind = answer_requests(saved, requests, document, Asking(blind=True))
    assert blind == [as_given(each)[0] for each in compared(model, gray=True)]
    assert blind != answer_requests(saved, requests, document, Asking())


def test_a_request_that_is_repeated_gets_as_many_samples(saved: SavedModel, model: str) -> None:
    """As lmms-eval repeats one: the same object, several times."""
    first, second = (request(number, temperature=1.0, seed=3) for number in (0, 1))
    given = answer_requests(saved, [first, second, first, second, first], document, Asking())
    three = compared(model, num_samples=3, temperature=1.0, seed=3)
    two = compared(model, num_samples=2, temperature=1.0, seed=3)
    assert [given[place] for place in (0, 2, 4)] == as_given(three[0])
    assert [given[place] for place in (1, 3)] == as_given(two[1])
    assert len(set(given)) > 3


def test_stops_cut_the_text_and_the_caller_may_change_the_limit(saved: SavedModel) -> None:
    (plain,) = answer_requests(saved, [request(0)], document, Asking())
    stop = plain.text[2]
    assert stop not in plain.text[:2]
    (cut,) = answer_requests(saved, [request(0, until=[stop])], document, Asking())
    assert cut == Given(plain.text[:2], plain.num_tokens, plain.truncated)
    (longer,) = answer_requests(saved, [request(0)], document, Asking(max_completion_length=9))
    assert longer.text.startswith(plain.text) and (plain.num_tokens, longer.num_tokens) == (LENGTH, 9)


def test_the_task_of_a_question_that_cannot_be_asked_is_named(saved: SavedModel) -> None:
    with pytest.raises(ConfigError, match="task colors asks for beam search"):
        answer_requests(saved, [request(0, num_beams=2)], document, Asking())

    def messages(_: object) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "<|image_pad|>"}]

    with pytest.raises(DataError, match="task colors, row 1: "):
        answer_requests(saved, [Instance(("", messages, {}, 1, "colors", "test"))], document, Asking())
