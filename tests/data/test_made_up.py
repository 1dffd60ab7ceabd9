from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.made_up import LONGEST, example_source, made_up_examples
from boresight.errors import ModelError
from boresight.model.load import model_facts
from tests.tiny import build_tiny

Encoders = Callable[[str], Encoder]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    def build(family: str) -> Encoder:
        folder: Path = build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512)
        processor: Any = AutoProcessor.from_pretrained(folder)
        return Encoder(processor, facts=model_facts(AutoModelForImageTextToText.from_pretrained(folder), processor))

    return build


def test_what_is_made_up(encoder: Encoders) -> None:
    it = encoder("gemma3")
    examples = made_up_examples(it)
    assert [len(example.group.prompt.images) for example in examples] == [1, 1, 2, 0]
    same, other = examples[0].group.prompt, examples[1].group.prompt
    assert torch.equal(same.ids, other.ids) and same.images != other.images
    assert it.facts.window == 16 and len(examples[3].group.prompt.ids) > 48
    for example in examples:
        longer, shorter = (completion.ids for completion in example.group.completions)
        assert torch.equal(longer[: len(shorter)], shorter) and len(shorter) < len(longer)
        assert not {*longer.tolist()} & {*it.facts.modality_ids, *it.facts.stop_ids}
        assert torch.equal(example.processed["input_ids"][0], example.group.prompt.ids)


@pytest.mark.parametrize(("window", "is_passed"), [(200, True), (LONGEST + 1, False)])
def test_text_alone_is_longer_than_a_window(encoder: Encoders, window: int, is_passed: bool) -> None:
    it = encoder("llava")
    it.facts = replace(it.facts, window=window)
    length = len(made_up_examples(it)[3].group.prompt.ids)
    assert (length > window) == is_passed and length < LONGEST


def test_prompts_that_a_processor_refuses_are_left_out(encoder: Encoders) -> None:
    assert [len(example.group.prompt.images) for example in made_up_examples(encoder("paligemma"))] == [1, 1, 2]


def test_ids_that_are_not_the_processors_own_are_an_error(encoder: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    it = encoder("llava")
    own = type(it.processor).apply_chat_template

    def wordy(self: Any, messages: Any, tokenize: bool = False, **options: Any) -> Any:
        if tokenize:
            messages = [*messages, {"role": "user", "content": [{"type": "text", "text": "more"}]}]
        return own(self, messages, tokenize=tokenize, **options)

    monkeypatch.setattr(type(it.processor), "apply_chat_template", wordy)
    with pytest.raises(ModelError, match="makes other ids of a conversation"):
        made_up_examples(it)


def test_another_processor_has_another_key(encoder: Encoders) -> None:
    one, same, other = encoder("llava"), encoder("llava"), encoder("llava_next")
    assert example_source(one).key == example_source(same).key != example_source(other).key
    same.processor.image_processor.size = {"shortest_edge": 64}
    assert example_source(one).key != example_source(same).key
