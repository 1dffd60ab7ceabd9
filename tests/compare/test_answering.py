"""A saved model's answers are those of plain transformers, for a model and for an adapter."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.compare.answering import AnswerSettings, answer, source_digest
from boresight.compare.answers import Answer
from boresight.data.sources import RowDataset
from boresight.errors import ConfigError, DataError, ModelError
from boresight.types import Row


def rows_of(questions: Dataset) -> list[Row]:
    data = RowDataset(questions)
    return [data[place] for place in range(len(data))]


def all_answers(source: str, rows: list[Row], **settings: Any) -> list[Answer]:
    found: dict[int, Answer] = {}
    for batch in answer(source, rows, AnswerSettings(max_completion_length=12, **settings)):
        found |= {place: one for place, (one,) in batch.items()}
    return [found[place] for place in range(len(rows))]


@torch.no_grad()
def plain_texts(model: Any, folder: str, questions: Dataset) -> list[str]:
    """By transformers' own generate, one question at a time."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    texts = []
    for row in questions.to_list():
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        parts = [{"type": "image", "image": image}, {"type": "text", "text": row["prompt"][0]["content"][1]["text"]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        banned = [[token] for token in _modality_ids(model, processor)]
        output = model.generate(**inputs, do_sample=False, max_new_tokens=12, bad_words_ids=banned)
        texts.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def _modality_ids(model: Any, processor: Any) -> tuple[int, ...]:
    from boresight.model.load import model_facts

    return model_facts(model, processor).modality_ids


def test_answers_are_those_of_plain_transformers(base: str, questions: Dataset) -> None:
    rows = rows_of(questions)
    ours = all_answers(base, rows, batch_size=4)
    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    assert [given.text for given in ours] == plain_texts(model, base, questions)
    assert len({given.text for given in ours}) > 3  # they depend on what is asked
    assert all(given.model_sizes and len(given.model_sizes) == 1 for given in ours)
    assert all(len(given.ids) == 12 for given in ours if given.truncated)


def test_an_adapter_answers_as_peft_has_it(base: str, adapter: str, questions: Dataset) -> None:
    """Its folder has no processor: that of the model below is taken."""
    ours = all_answers(adapter, rows_of(questions))
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    assert [given.text for given in ours] == plain_texts(model, base, questions)
    assert [given.text for given in ours] != [given.text for given in all_answers(base, rows_of(questions))]


def test_drawn_answers_depend_on_seed_and_row_alone(base: str, questions: Dataset) -> None:
    rows = rows_of(questions)
    drawn = {"temperature": 1.0, "seed": 5}
    whole = [given.text for given in all_answers(base, rows, **drawn)]
    assert whole == [given.text for given in all_answers(base, rows, batch_size=4, **drawn)]
    assert whole[3:5] == [given.text for given in all_answers(base, rows[3:5], **drawn)]
    assert whole != [given.text for given in all_answers(base, rows, temperature=1.0, seed=6)]


def test_a_folder_is_known_by_its_weights(base: str, other: str, adapter: str, tmp_path: Path) -> None:
    """An adapter's digest changes with the model below it."""
    assert len({source_digest(base), source_digest(other), source_digest(adapter)}) == 3
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in Path(adapter).iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    config = moved / "adapter_config.json"
    assert source_digest(str(moved)) == source_digest(adapter)
    config.write_text(config.read_text().replace(base, other))
    assert source_digest(str(moved)) != source_digest(adapter)


@pytest.mark.parametrize("source", ["no/such/model/here", "./nowhere"])
def test_no_such_model(source: str) -> None:
    with pytest.raises(ModelError, match="There is no model at"):
        source_digest(source)


def test_a_model_below_an_adapter_that_is_gone(adapter: str, base: str, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.mkdir()
    for file in Path(adapter).iterdir():
        (lost / file.name).write_bytes(file.read_bytes())
    config = lost / "adapter_config.json"
    config.write_text(config.read_text().replace(base, "/no/such/base"))
    with pytest.raises(ModelError, match="/no/such/base"):
        source_digest(str(lost))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_settings_outside_their_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnswerSettings(**options)


def test_settings_say_what_answers_depend_on() -> None:
    assert AnswerSettings(batch_size=3, seed=9).described() == {
        "max_completion_length": "512",
        "temperature": "0",
        "dtype": "auto",
    }
    drawn = AnswerSettings(temperature=0.7, seed=9, max_pixels=50_000).described()
    assert (drawn["temperature"], drawn["seed"], drawn["max_pixels"]) == ("0.7", "9", "50000")


def test_a_row_that_cannot_be_asked_is_named(base: str) -> None:
    prompt = [{"role": "user", "content": [{"type": "text", "text": "<|image_pad|>"}]}]
    rows = [Row(index=7, prompt=prompt, completions=(), images=(), columns={})]
    with pytest.raises(DataError, match="row 7"):
        all_answers(base, rows)
