"""A folder of questions and several models' answers, so that no question is asked twice.

    FOLDER/questions.parquet           the questions, in order
    FOLDER/images/<digest>.<ext>       every image once, as it was encoded
    FOLDER/answers/<model>.parquet     one row per answer; the settings under which the model was asked are in the file's metadata
    FOLDER/comparison.json             which models are compared, and by which reward

`questions.parquet`: `key`, `row` (in the data set), `question`, `gold`, `kind`, `images` (file names), `columns` (the data set's
further columns as JSON). An answers file: `key` (of its question), `text`, `ids` (tokens), `truncated`, `model_sizes`
(width and height of the images as the model saw them), `think_opened` (whether the prompt ends with <think>), and `scores`, names and
values of rewards; of a model with tools also `num_calls`, `num_failed_calls`, `ended`, and as JSON `messages` and `turns`.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from boresight.errors import ConfigError, DataError
from boresight.files import write_whole
from boresight.report.completions import keep_image, prompt_text
from boresight.report.turns import transcript
from boresight.types import EncodedImage, Row

NAME = re.compile(r"[\w][\w.+-]*")
"""A model's name is a file name, too."""

_QUESTIONS = pa.schema(
    {
        "key": pa.string(),
        "row": pa.int64(),
        "question": pa.string(),
        "gold": pa.string(),
        "kind": pa.string(),
        "images": pa.list_(pa.string()),
        "columns": pa.string(),
    }
)
_ANSWERS = pa.schema(
    {
        "key": pa.string(),
        "text": pa.string(),
        "ids": pa.list_(pa.int32()),
        "truncated": pa.bool_(),
        "model_sizes": pa.list_(pa.list_(pa.int32())),
        "think_opened": pa.bool_(),
        "scores": pa.list_(pa.struct({"name": pa.string(), "value": pa.float64()})),
        "messages": pa.string(),
        "turns": pa.string(),
        "num_calls": pa.int32(),
        "num_failed_calls": pa.int32(),
        "ended": pa.string(),
    }
)
_SETTINGS = b"boresight settings"


@dataclass(frozen=True, slots=True)
class Question:
    """One question, which every model is asked."""

    key: str
    """Identifies the question: a digest of its prompt and images."""
    row: int
    """In the data set."""
    question: str
    """As readable text."""
    gold: str | None
    """The data set's answer."""
    kind: str
    """Accuracies are also given by kind; empty where the data set has no such column."""
    images: tuple[str, ...]
    """File names in FOLDER/images."""
    columns: Mapping[str, Any]
    """The data set's further columns that are text or numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one question."""

    text: str
    ids: tuple[int, ...]
    """Tokens, the end token included."""
    truncated: bool
    """Whether it reached the length limit."""
    model_sizes: tuple[tuple[int, int], ...] | None = None
    """(Width, height) of the images as the model saw them; None where it saw tiles."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Reward function → reward; None where it does not apply, or failed."""
    think_opened: bool = False
    """Whether the model's prompt ends with ``<think>``, so that the answer begins inside the reasoning."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """The turns as messages, for rewards; None for a model without tools."""
    turns: tuple[Mapping[str, Any], ...] = ()
    """The turns as a page shows them (`report.turns`); empty for an answer of one turn. `text` is then the last turn's."""
    num_calls: int | None = None
    """Calls of tools, failed ones included; None for a model without tools."""
    num_failed_calls: int = 0
    """Calls that were answered with an error."""
    ended: str = ""
    """Why it ended with a call: "no_room" or "too_many_turns"."""

    @property
    def transcript(self) -> str:
        """All turns as one text."""
        return transcript(self.turns) if self.turns else self.text


class AnswerStore:
    """A folder of questions and answers.

    Args:
        folder: made when something is first stored.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def keep_questions(self, rows: Sequence[Row], keys: Sequence[str], *, kind: str | None = "kind") -> list[Question]:
        """Store the questions and their images, replacing earlier ones.

        Args:
            rows: in the order in which a page shows them.
            keys: of the rows.
            kind: the column with the kind of question.
        """
        images = {image for row in rows for image in row.images}
        names = {image.digest: keep_image(self.images_folder, image) for image in images}
        questions = [
            Question(
                key=key,
                row=row.index,
                question=question_text(row),
                gold=_text(row.columns.get("solution")),
                kind=_text(row.columns.get(kind)) or "" if kind else "",
                images=tuple(names[image.digest] for image in row.images),
                columns={
                    name: value
                    for name, value in row.columns.items()
                    if isinstance(value, str | int | float) and name not in ("solution", kind)
                },
            )
            for row, key in zip(rows, keys, strict=True)
        ]
        records = [
            {name: getattr(question, name) for name in _QUESTIONS.names}
            | {"images": list(question.images), "columns": json.dumps(dict(question.columns), ensure_ascii=False)}
            for question in questions
        ]
        write_whole(self.folder / "questions.parquet", _parquet(pa.Table.from_pylist(records, _QUESTIONS)))
        return questions

    def questions(self) -> list[Question]:
        """The stored questions.

        Raises:
            DataError: there are none.
        """
        path = self.folder / "questions.parquet"
        if not path.exists():
            raise DataError(f"{self.folder} holds no answers: name the models and a data set, so that they are asked.")
        return [
            Question(**record | {"images": tuple(record["images"]), "columns": json.loads(record["columns"])})
            for record in pq.read_table(path).to_pylist()
        ]

    def answers(self, model: str) -> tuple[dict[str, str], dict[str, Answer]]:
        """The settings under which a model was asked, and its answers by the keys of their questions; both empty if it was not."""
        path = self._path(model)
        if not path.exists():
            return {}, {}
        table = pq.read_table(path)
        settings = json.loads((table.schema.metadata or {}).get(_SETTINGS, b"{}"))
        return settings, {record.pop("key"): _answer(record) for record in table.to_pylist()}

    def keep_answers(self, model: str, settings: Mapping[str, str], answers: Mapping[str, Answer]) -> None:
        """Store a model's answers, replacing earlier ones."""
        records = [
            {
                "key": key,
                "text": answer.text,
                "ids": list(answer.ids),
                "truncated": answer.truncated,
                "think_opened": answer.think_opened,
                "model_sizes": None if answer.model_sizes is None else [list(size) for size in answer.model_sizes],
                "scores": [{"name": name, "value": value} for name, value in answer.scores.items()],
                "messages": None if answer.messages is None else _json(list(answer.messages)),
                "turns": _json(list(answer.turns)) if answer.turns else None,
                "num_calls": answer.num_calls,
                "num_failed_calls": answer.num_failed_calls,
                "ended": answer.ended,
            }
            for key, answer in answers.items()
        ]
        schema = _ANSWERS.with_metadata({_SETTINGS: json.dumps(dict(settings)).encode()})
        write_whole(self._path(model), _parquet(pa.Table.from_pylist(records, schema)))

    def keep_comparison(self, comparison: Mapping[str, Any]) -> None:
        """Store what a page needs beside questions and answers, as JSON."""
        text = json.dumps(dict(comparison), ensure_ascii=False, indent=2)
        write_whole(self.folder / "comparison.json", f"{text}\n".encode())

    def comparison(self) -> dict[str, Any]:
        """What `keep_comparison` stored.

        Raises:
            DataError: nothing is stored.
        """
        path = self.folder / "comparison.json"
        if not path.exists():
            raise DataError(f"{self.folder} holds no comparison: name the models and a data set.")
        return json.loads(path.read_text(encoding="utf-8"))

    def keep_image(self, image: EncodedImage) -> str:
        """Store an image that a tool returned; returns its file name."""
        return keep_image(self.images_folder, image)

    @property
    def images_folder(self) -> Path:
        return self.folder / "images"

    def _path(self, model: str) -> Path:
        return self.folder / "answers" / f"{checked_name(model)}.parquet"


def checked_name(model: str) -> str:
    """The name, if it is valid for a model.

    Raises:
        ConfigError: it is not.
    """
    if not NAME.fullmatch(model):
        raise ConfigError(
            f"A model cannot be called {model!r}: use letters, digits, and . _ + - in between, as in base=FOLDER."
        )
    return model


def question_text(row: Row) -> str:
    """A row's prompt without its images: the text of its only message, or every message under its role."""
    if isinstance(row.prompt, str) or len(row.prompt) != 1:
        return prompt_text(row.prompt)
    content = row.prompt[0]["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


def _answer(record: dict[str, Any]) -> Answer:
    sizes = record["model_sizes"]
    return Answer(
        record["text"],
        tuple(record["ids"]),
        record["truncated"],
        None if sizes is None else tuple((width, height) for width, height in sizes),
        {score["name"]: score["value"] for score in record["scores"]},
        # A file of an earlier version lacks some columns.
        bool(record.get("think_opened")),
        messages=None if record.get("messages") is None else tuple(json.loads(record["messages"])),
        turns=tuple(json.loads(record.get("turns") or "[]")),
        num_calls=record.get("num_calls"),
        num_failed_calls=record.get("num_failed_calls") or 0,
        ended=record.get("ended") or "",
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
