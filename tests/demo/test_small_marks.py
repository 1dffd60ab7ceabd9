from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.demo.small_marks import COLORS, MarkTools, demonstrations, load_small_marks, marks
from boresight.demo.tiny import build_tiny
from boresight.demo.tiny.qwen import CONTENT, chatml_with_tools
from boresight.errors import ConfigError
from boresight.model.load import model_facts
from boresight.tools.environments import Environments

SIZE = 448


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).int()


def test_the_whole_image_does_not_say_the_answer_and_a_zoom_does() -> None:
    """As large as the model sees it, the image is the same with both colours exchanged; the cell alone is not."""
    tools = MarkTools()
    for mark in marks("train", 12):
        swapped = replace(mark, first=mark.second, second=mark.first)
        one, other = (Image.open(io.BytesIO(each.png(SIZE))) for each in (mark, swapped))
        small = [pixels(each.resize((SIZE // 4, SIZE // 4), Image.Resampling.BICUBIC)) for each in (one, other)]
        assert (
            small[0] - small[1]
        ).abs().max() <= 4  # of 255: rounding, and what bicubic resizing leaves of the corners
        seen = []
        for each in (one, other):
            tools.reset(images=[each])
            (part,) = tools.zoom(**mark.region)
            assert part["image"].size == (112, 112)
            seen.append(pixels(part["image"]))
        assert (seen[0] - seen[1]).abs().max() > 100
        colors = Counter(part["image"].getdata())
        assert colors[COLORS[mark.second]] == 32 * 64


def test_answers_are_balanced_and_no_test_image_is_trained_on() -> None:
    rows = load_small_marks(num_rows=60)
    assert set(Counter(row["solution"] for row in rows).values()) == {20}
    train, test = (set(marks(split, 600)) for split in ("train", "test"))
    assert not train & test
    places = [{(mark.column, mark.row, mark.right, mark.down) for mark in each} for each in (train, test)]
    assert not places[0] & places[1]
    assert len({(mark.column, mark.row) for mark in test}) == 16


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder: Path = build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("marks"), vocab_size=512)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = chatml_with_tools(CONTENT)
    facts = model_facts(AutoModelForImageTextToText.from_pretrained(folder), processor)
    return Encoder(processor, facts=facts, max_pixels=112 * 112)


def test_a_demonstration_counts_the_policys_turns_alone(encoder: Encoder) -> None:
    row = read_row(demonstrations(1)[0], 0)
    (completion,) = encoder.demonstration(row, assistant_only=True).completions
    counted = encoder.tokenizer.decode(completion.ids[completion.mask])
    assert counted.startswith('<tool_call>\n{"name": "zoom", "arguments": {"left": ')
    assert counted.endswith(f"</tool_call><|im_end|>{marks('train', 1)[0].first}<|im_end|>")
    assert (completion.ids[~completion.mask] == encoder.facts.image_token_id).sum() == 49


def test_a_demonstration_reads_as_a_rollout_does(encoder: Encoder) -> None:
    """Its prompt is the one that the policy gets with these tools."""
    row = read_row(demonstrations(1)[0], 0)
    whole = encoder.texts.conversation(row)
    with_tools = Encoder(
        encoder.processor, facts=encoder.facts, max_pixels=112 * 112, tools=Environments(None, MarkTools).schemas
    )
    prompt = with_tools.texts.prompt(read_row(load_small_marks(num_rows=1)[0], 0))
    assert whole.startswith(prompt)


def test_an_image_without_room_for_a_mark_is_refused() -> None:
    with pytest.raises(ConfigError, match="size=256"):
        load_small_marks(num_rows=1, size=256)
