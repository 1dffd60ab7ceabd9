from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

import boresight.data
from boresight.data import Encoder, read_row
from boresight.data.texts import joined


@pytest.mark.parametrize(
    ("family", "placeholder"),
    [
        ("qwen2_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("qwen3_vl", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("smolvlm", "<image>"),
        ("llava_next", "<image>"),
        ("internvl", "<IMG_CONTEXT>"),
        ("gemma3", "<start_of_image>"),
    ],
)
def test_placeholder_of_a_family(family: str, placeholder: str, encoder: Callable[..., Encoder]) -> None:
    texts = encoder(family).texts
    assert texts.placeholder == placeholder
    assert texts.image_token in texts.reserved


def test_completions_are_what_the_template_adds(encoder: Callable[..., Encoder]) -> None:
    texts = encoder().texts
    record = {
        "prompt": [{"role": "user", "content": "a?"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": ""}],
    }
    row = read_row(record, 0)
    assert texts.prompt(row).endswith("<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\n")
    assert texts.completions(row) == ["b<|im_end|>\n", "<|im_end|>\n"]
    assert joined(row.prompt, row.completions[0]) == [*row.prompt, *row.completions[0]]


def test_tools_of_a_row_reach_the_template(encoder: Callable[..., Encoder]) -> None:
    texts = encoder().texts
    texts.processor.chat_template = "{{ tools[0]['name'] if tools else 'none' }}"
    record = {"prompt": [{"role": "user", "content": "a?"}]}
    assert texts.prompt(read_row(record, 0)) == "none"
    assert texts.prompt(read_row(record | {"tools": [{"name": "ruler"}]}, 0)) == "ruler"


def test_the_room_opens_without_torch_and_shows_what_it_promises() -> None:
    code = "import sys, boresight.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(getattr(boresight.data, name).__name__ == name for name in boresight.data.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        boresight.data.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
