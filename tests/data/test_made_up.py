from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.made_up import LONGEST, example_source, made_up_examples
from boresight.data.schema import read_row
from boresight.errors import ImageError, ModelError
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


TEXT_ALONE = (
    "{% for m in messages %}{{ m['content'] if m['content'] is string else m['content'][-1]['text'] }}{% endfor %}"
)


def test_a_chat_template_without_images(encoder: Encoders) -> None:
    """Rows of text can be trained on; a row with an image is refused, since the model would not see it."""
    it = encoder("qwen2_5_vl")
    it.processor.chat_template = it.tokenizer.chat_template = TEXT_ALONE
    bare = Encoder(it.processor, facts=it.facts)
    assert [len(example.group.prompt.images) for example in made_up_examples(bare)] == [0]
    content = [{"type": "image"}, {"type": "text", "text": "What color?"}]
    row = read_row({"prompt": [{"role": "user", "content": content}], "image": Image.new("RGB", (56, 56))}, 3)
    with pytest.raises(ImageError, match="row 3: nothing in its text stands for its 1 image"):
        bare.prompt(row)
