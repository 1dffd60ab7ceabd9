"""`weight` of an assistant's message, as OpenAI writes it: 0 leaves its tokens out of the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from boresight.data import Encoder
from boresight.data.schema import read_row
from boresight.errors import DataError
from boresight.types import Group

Make = Callable[..., Encoder]
END = "<|im_end|>"


def talk(*weights: Any) -> list[dict[str, Any]]:
    return [  # Arrow fills an absent key with None
        {"role": "user", "content": "what color?"},
        {"role": "assistant", "content": "blue", "weight": weights[0]},
        {"role": "user", "content": "is it?"},
        {"role": "assistant", "content": "yes", "weight": weights[1]},
    ]


def counted(group: Group, encode: Encoder) -> str:
    (completion,) = group.completions
    return encode.tokenizer.decode(completion.ids[completion.mask])


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ((None, None), f"blue{END}yes{END}"),
        ((0, 1), f"yes{END}"),
        ((1.0, 0.0), f"blue{END}"),
        ((True, None), f"blue{END}yes{END}"),
    ],
)
def test_a_turn_of_weight_0_does_not_count(encoder: Make, weights: Any, kept: str) -> None:
    encode = encoder()
    assert counted(encode.demonstration(read_row({"messages": talk(*weights)}, 0), assistant_only=True), encode) == kept


def test_the_rest_of_the_text_still_counts(encoder: Make) -> None:
    encode = encoder()
    whole = counted(encode.demonstration(read_row({"messages": talk(1, 1)}, 0)), encode)
    without_first = counted(encode.demonstration(read_row({"messages": talk(0, 1)}, 0)), encode)
    assert f"what color?{END}" in without_first
    assert without_first.endswith(f"yes{END}")
    assert "blue" in whole and "blue" not in without_first


def test_prompt_and_completion(encoder: Make) -> None:
    encode = encoder()
    turns = talk(0, 1)
    row = read_row({"prompt": turns[:1], "completion": turns[1:]}, 0)
    for assistant_only in (False, True):
        found = counted(encode.demonstration(row, assistant_only=assistant_only), encode)
        assert found.endswith(f"yes{END}")
        assert "blue" not in found


def test_what_is_no_weight_is_refused(encoder: Make) -> None:
    with pytest.raises(DataError, match=r"messages\[1\].*weight=0.5"):
        read_row({"messages": talk(0.5, 1)}, 0)
    turns = [{**turn, "weight": 1} for turn in talk(1, 1)]
    with pytest.raises(DataError, match="weight belongs to the assistant's messages, and this is the user's"):
        read_row({"messages": turns}, 0)
    encode = encoder()
    with pytest.raises(DataError, match="no token would count"):
        encode.demonstration(read_row({"messages": talk(0, 0)}, 0), assistant_only=True)
