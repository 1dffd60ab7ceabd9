"""TRL's functions on rows, beside TRL's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from transformers import AutoProcessor

import boresight
from boresight.demo.tiny import build_tiny
from boresight.errors import DataError

USER = {"role": "user", "content": "What colour?"}
BLUE, RED = {"role": "assistant", "content": "blue"}, {"role": "assistant", "content": "red"}


@pytest.mark.parametrize(
    "example",
    [
        {"prompt": [USER]},
        {"prompt": "text"},
        {"messages": [USER, BLUE]},
        {"chosen": [BLUE], "rejected": [RED]},
        {"other": 1},
    ],
)
def test_is_conversational(example: dict[str, Any]) -> None:
    assert boresight.is_conversational(example) == trl.data_utils.is_conversational(example)


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        ([USER, BLUE], ["one", "two"]),
        ([{"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image"}]}, BLUE], ["one"]),
        ([{"role": "system", "content": "Be brief."}, USER], []),
    ],
)
def test_prepare_multimodal_messages(messages: list[Any], images: list[Any]) -> None:
    assert boresight.prepare_multimodal_messages(messages, images) == trl.prepare_multimodal_messages(messages, images)


def test_images_without_a_place() -> None:
    placed = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(DataError, match="1 of 2 images have no place"):
        boresight.prepare_multimodal_messages(placed, ["one", "two"])
    with pytest.raises(DataError, match="more places for images than the 0 images"):
        boresight.prepare_multimodal_messages(placed, [])


@pytest.mark.parametrize(
    "example",
    [
        {"chosen": [USER, BLUE], "rejected": [USER, RED]},
        {"chosen": "The sky is blue", "rejected": "The sky is red"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ],
)
def test_prompts_are_what_both_answers_share(example: dict[str, Any]) -> None:
    assert boresight.maybe_extract_prompt(example) == trl.data_utils.maybe_extract_prompt(example)


def test_unpair() -> None:
    pairs = Dataset.from_list(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    )
    assert (
        boresight.unpair_preference_dataset(pairs).to_list()
        == trl.data_utils.unpair_preference_dataset(pairs).to_list()
    )


def test_apply_chat_template(tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(build_tiny("qwen2_5_vl", tmp_path))
    for example in (
        {"messages": [USER, BLUE]},
        {"prompt": [USER]},
        {"prompt": [USER], "completion": [BLUE]},
        {"prompt": [USER], "chosen": [BLUE], "rejected": [RED]},
        {"prompt": [USER], "completion": [BLUE], "label": True},
    ):
        expected = trl.data_utils.apply_chat_template(example, processor.tokenizer)
        assert boresight.apply_chat_template(example, processor.tokenizer) == expected
