"""Questions and answers come back from their folder as they went in."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from boresight.compare.answers import Answer, AnswerStore, checked_name, question_text
from boresight.errors import ConfigError, DataError
from boresight.types import EncodedImage, Row

ODD = "a | b\n<script>& 三角形 \x00 \\frac{1}{2}"


def image(colour: str) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    content = buffer.getvalue()
    return EncodedImage(content, hashlib.sha256(content).hexdigest(), (6, 4))


def user(text: str, images: int = 0) -> list[dict[str, object]]:
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_questions_come_back(tmp_path: Path) -> None:
    red, blue = image("red"), image("blue")
    rows = [
        Row(4, user("which?", 2), (), (red, blue), {"solution": "B", "kind": "pair", "level": 3, "raw": b"no text"}),
        Row(7, user(ODD, 1), (), (red,), {"solution": 12, "kind": None, "note": ODD}),
        Row(9, "plain", (), (), {}),
    ]
    store = AnswerStore(tmp_path / "kept")
    questions = store.keep_questions(rows, ["k4", "k7", "k9"])
    assert store.questions() == questions
    assert [question.gold for question in questions] == ["B", "12", None]
    assert [question.kind for question in questions] == ["pair", "", ""]
    assert questions[0].columns == {"level": 3}
    assert questions[1].columns == {"note": ODD}
    assert questions[0].images == (f"{red.digest}.png", f"{blue.digest}.png")
    assert sorted(path.name for path in store.images_folder.iterdir()) == sorted(questions[0].images)
    assert (store.images_folder / questions[1].images[0]).read_bytes() == red.source


def test_the_kind_is_the_column_that_is_named(tmp_path: Path) -> None:
    rows = [Row(0, "?", (), (), {"level": 3, "kind": "x"})]
    (question,) = AnswerStore(tmp_path).keep_questions(rows, ["k"], kind="level")
    assert (question.kind, question.columns) == ("3", {"kind": "x"})


def test_answers_come_back(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path)
    answers = {
        "a": Answer(ODD, (1, 2, 3), False, ((28, 56), (84, 28)), {"exact": 1.0, "judge": None}),
        "b": Answer("", (), True, None, {}),
    }
    store.keep_answers("gspo-v1.2", {"temperature": "0"}, answers)
    assert store.answers("gspo-v1.2") == ({"temperature": "0"}, answers)
    assert store.answers("mpo") == ({}, {})
    store.keep_answers("gspo-v1.2", {"temperature": "1"}, {"b": answers["b"]})
    assert store.answers("gspo-v1.2") == ({"temperature": "1"}, {"b": answers["b"]})


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "-rf", "a b", "x\n"])
def test_a_name_is_that_of_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        checked_name(name)
    with pytest.raises(ConfigError):
        AnswerStore(tmp_path).keep_answers(name, {}, {})


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no answers: name the models and a data set"):
        AnswerStore(tmp_path).questions()


def test_what_a_question_reads_like() -> None:
    assert question_text(Row(0, user("what is it?", 2), (), (), {})) == "what is it?"
    assert question_text(Row(0, "plain <image> text", (), (), {})) == "plain <image> text"
    turns = [{"role": "system", "content": "be brief"}, *user("what is it?", 1)]
    assert question_text(Row(0, turns, (), (), {})) == "system: be brief\nuser: <image>what is it?"
