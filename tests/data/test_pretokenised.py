"""Rows of token ids: which tokens count, as TRL's SFT counts them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from boresight.data import Encoder, read_row
from boresight.data.findings import row_findings
from boresight.data.pretokenised import demonstration, is_pretokenised
from boresight.errors import DataError
from boresight.types import Group
from tests.data.messages import assistant, user

IDS = [11, 12, 13, 14, 15]


def counted(group: Group) -> list[int]:
    (completion,) = group.completions
    return completion.ids[completion.mask].tolist()


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({}, {}, [12, 13, 14, 15]),
        ({"labels": [-100, -100, 13, -100, 15]}, {}, [13, 15]),
        ({"labels": [11, 12, -100, -100, -100]}, {}, [12]),
        ({"assistant_masks": [0, 0, 0, 1, 1]}, {}, [14, 15]),
        ({"completion_mask": [0, 0, 1, 1, 1]}, {}, [13, 14, 15]),
        ({"completion_mask": [0, 0, 1, 1, 1]}, {"completion_only": False}, [12, 13, 14, 15]),
        ({"completion_mask": [0, 0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1, 0]}, {}, [14]),
        ({"labels": [-100, 12, 13, 14, 15], "assistant_masks": [0, 0, 0, 0, 1]}, {}, [12, 13, 14, 15]),
        ({}, {"max_length": 3}, [12, 13]),
        ({"assistant_masks": [0, 1, 0, 1, 1]}, {"assistant_only": True}, [12, 14, 15]),
    ],
)
def test_the_tokens_that_count(
    encoder: Callable[..., Encoder], columns: dict[str, Any], options: dict[str, Any], expected: list[int]
) -> None:
    row = read_row({"input_ids": IDS, **columns}, 0)
    group = demonstration(encoder(), row, **options)
    assert counted(group) == expected
    length = options.get("max_length", len(IDS))
    assert [*group.prompt.ids.tolist(), *group.completions[0].ids.tolist()] == IDS[:length]
    assert group.completions[0].truncated == (length < len(IDS))
    assert group.completions[0].mask[0]  # the prompt is everything before the first token that counts
    assert row_findings(row) == []


def test_the_same_tokens_as_from_the_text(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    whole = encode.demonstration(read_row({"text": "a circle is red"}, 0))
    ids = [*whole.prompt.ids.tolist(), *whole.completions[0].ids.tolist()]
    given = demonstration(encode, read_row({"input_ids": ids}, 0))
    assert given.prompt.ids.tolist() == whole.prompt.ids.tolist()
    assert counted(given) == counted(whole)
    assert given.completions[0].text == whole.completions[0].text


def test_other_rows_pass_by(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    row = read_row({"prompt": [user("color?")], "completion": [assistant("red")], "input_ids": [1, 2]}, 0)
    assert not is_pretokenised(row)
    assert demonstration(encode, row).completions[0].text == "red"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"input_ids": []}, {}, "input_ids is empty"),
        ({"input_ids": [1, 10**6]}, {}, "the token 1000000 is not in the model's vocabulary"),
        ({"input_ids": [1, -3]}, {}, "the token -3 is not in"),
        ({"input_ids": "1 2"}, {}, "input_ids is not a list of integers"),
        ({"labels": [-100] * 5}, {}, "no token would count"),
        ({"labels": [11, -100, -100, -100, -100]}, {}, "no token would count"),
        ({"labels": [12, 13, 14, 15, -100]}, {}, r"labels\[0\] is 12, neither -100 nor its token.*not shifted"),
        ({"labels": [-100]}, {}, "labels has 1 entries, and input_ids has 5"),
        ({"completion_mask": [0, 0, 0, 1, 1]}, {"max_length": 3}, r"of its first 3 tokens \(max_length\), none counts"),
        ({}, {"assistant_only": True}, "assistant_only_loss=True needs assistant_masks"),
        ({"image": "IMAGE"}, {}, "input_ids beside images"),
    ],
)
def test_what_is_refused(
    encoder: Callable[..., Encoder], questions: Any, columns: dict[str, Any], options: Any, message: str
) -> None:
    columns = {name: questions[0]["image"] if value == "IMAGE" else value for name, value in columns.items()}
    with pytest.raises(DataError, match=f"^row 3: .*{message}"):
        demonstration(encoder(), read_row({"input_ids": IDS, **columns}, 3), **options)


def test_an_image_token_among_the_ids_is_refused(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    with pytest.raises(DataError, match="stands for an image, which only the processor can place"):
        demonstration(encode, read_row({"input_ids": [5, encode.facts.image_token_id]}, 0))


def test_other_methods_say_what_they_need(encoder: Callable[..., Encoder]) -> None:
    row = read_row({"input_ids": IDS}, 0)
    with pytest.raises(DataError, match="row 0: a prompt column is needed"):
        encoder().prompt(row)
    with pytest.raises(DataError, match="row 0: a preference needs the columns chosen and rejected"):
        encoder().preference(row)
