"""Conversations whose chat template drops thinking from earlier turns, as Qwen3's do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from boresight.data import Encoder
from boresight.data.schema import read_row
from boresight.errors import DataError
from boresight.trainer.checks import RowCheck
from boresight.types import Group

Make = Callable[..., Encoder]

FORGETFUL = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% set past = loop.index0 < ns.last %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif past and message['role'] == 'assistant' %}{{ part['text'].split('</think>')[-1] }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Turns before the last question lose what they have before `</think>`; those after it keep it (steps between tools)."""

RED, BLUE = Image.new("RGB", (56, 56), "red"), Image.new("RGB", (84, 56), "blue")


def said(role: str, text: str, *, image: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]}


TALK = [
    said("user", "what is it?", image=True),
    said("assistant", "<think>I look</think>red"),
    said("user", "and this?", image=True),
    said("assistant", "<think>again</think>blue"),
    said("tool", "look closer"),
    said("assistant", "<think>closer</think>dark blue"),
    said("user", "sure?"),
    said("assistant", "<think>hm</think>yes"),
]


@pytest.fixture
def forgetful(encoder: Make) -> Encoder:
    made = encoder()
    made.processor.chat_template = FORGETFUL
    return made


def shown(group: Group, encode: Encoder) -> list[tuple[str, str]]:
    """For every completion: the whole text before it and with it, images as one placeholder, and what counts."""
    decode, pad = encode.tokenizer.decode, "<|image_pad|>"
    texts = []
    for completion in group.completions:
        whole = decode([*group.prompt.ids.tolist(), *completion.ids.tolist()])
        while pad * 2 in whole:
            whole = whole.replace(pad * 2, pad)
        texts.append((whole, decode(completion.ids[completion.mask])))
    return texts


def test_every_turn_is_learned_after_what_was_rendered_before_it(forgetful: Encoder) -> None:
    row = read_row({"messages": TALK, "images": [RED, BLUE]}, 0)
    group = forgetful.demonstration(row, assistant_only=True)
    assert (
        [counted for _, counted in shown(group, forgetful)]
        == [
            "<think>I look</think>red<|im_end|>",
            "<think>again</think>blue<|im_end|><think>closer</think>dark blue<|im_end|>",  # one branch: no question between them
            "<think>hm</think>yes<|im_end|>",
        ]
    )
    for place, (text, _) in zip((2, 6, 8), shown(group, forgetful), strict=True):
        assert text == forgetful.texts.render(row.completions[0][:place], row).removesuffix("\n")  # pyright: ignore[reportArgumentType]
    # The prompt is shared, with the first image; the second belongs to the branches that come to it.
    assert forgetful.tokenizer.decode(group.prompt.ids).replace("<|image_pad|>", "") == (
        "<|im_start|>user\n<|vision_start|><|vision_end|>what is it?<|im_end|>"
    )
    assert [image.size for image in group.prompt.images] == [RED.size]
    assert [[each.images[0].size for each in completion.image_sets] for completion in group.completions] == [
        [],
        [BLUE.size],
        [BLUE.size],
    ]


def test_a_branch_is_encoded_as_the_processor_encodes_its_text(forgetful: Encoder) -> None:
    row = read_row({"messages": TALK, "images": [RED, BLUE]}, 0)
    group = forgetful.demonstration(row, assistant_only=True)
    for completion, (place, images) in zip(
        group.completions, ((2, [RED]), (6, [RED, BLUE]), (8, [RED, BLUE])), strict=True
    ):
        text = forgetful.texts.render(row.completions[0][:place], row)  # pyright: ignore[reportArgumentType]
        alone = forgetful.processor(text=[text], images=[images], return_tensors="pt", return_mm_token_type_ids=True)
        ids = torch.cat([group.prompt.ids, completion.ids])
        assert torch.equal(ids, alone["input_ids"][0, : len(ids)])
        assert completion.token_types is not None
        types = torch.cat([group.prompt.token_types, completion.token_types])
        assert torch.equal(types, alone["mm_token_type_ids"][0, : len(ids)])
        pixels = [group.prompt.vision, *(each.vision for each in completion.image_sets)]
        assert torch.equal(torch.cat([each["pixel_values"] for each in pixels]), alone["pixel_values"])


def test_weights_choose_the_branches(forgetful: Encoder) -> None:
    messages = [
        {**turn, "weight": int(place == 1)} if turn["role"] == "assistant" else turn for place, turn in enumerate(TALK)
    ]
    row = read_row({"messages": messages, "images": [RED, BLUE]}, 0)
    ((text, counted),) = shown(forgetful.demonstration(row, assistant_only=True), forgetful)
    assert counted == "<think>I look</think>red<|im_end|>"
    assert "and this?" not in text


def test_prompt_and_completion(forgetful: Encoder) -> None:
    row = read_row({"prompt": TALK[:3], "completion": TALK[3:], "images": [RED, BLUE]}, 0)
    group = forgetful.demonstration(row, assistant_only=True)
    assert [counted for _, counted in shown(group, forgetful)] == [
        "<think>again</think>blue<|im_end|><think>closer</think>dark blue<|im_end|>",
        "<think>hm</think>yes<|im_end|>",
    ]
    assert len(group.prompt.images) == 2
    assert not any(completion.image_sets for completion in group.completions)


def test_too_long_a_branch_is_cut_and_an_image_never(forgetful: Encoder) -> None:
    row = read_row({"messages": TALK, "images": [RED, BLUE]}, 0)
    whole = forgetful.demonstration(row, assistant_only=True)
    longest = len(whole.prompt.ids) + max(len(completion.ids) for completion in whole.completions)
    cut = forgetful.demonstration(row, assistant_only=True, max_length=longest - 1)
    assert [completion.truncated for completion in cut.completions] == [False, False, True]
    with pytest.raises(DataError, match="more than max_length"):
        forgetful.demonstration(row, assistant_only=True, max_length=len(whole.prompt.ids) + 25)


def test_without_anything_in_common(encoder: Make) -> None:
    made = encoder()
    made.processor.chat_template = "{{ messages | length }}" + FORGETFUL
    with pytest.raises(DataError, match=r"row 4: the chat template renders .* differently once"):
        made.demonstration(read_row({"messages": TALK, "images": [RED, BLUE]}, 4), assistant_only=True)


@pytest.mark.parametrize(
    ("assistant_only", "words"), [(True, "in branches that share the prompt"), (False, "assistant_only_loss=True")]
)
def test_it_is_reported(forgetful: Encoder, assistant_only: bool, words: str) -> None:
    check = RowCheck(forgetful, lambda encoder, row: encoder.demonstration(row, assistant_only=assistant_only))
    (finding,) = check(read_row({"messages": TALK, "images": [RED, BLUE]}, 0)).findings
    assert words in finding
    assert check(read_row({"messages": TALK[:2], "images": [RED]}, 0)).findings == ()
