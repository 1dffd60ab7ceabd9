from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from boresight.data import load_image, read_row
from boresight.errors import DataError, ImageError
from tests.data.messages import IMAGE, assistant, text, user


def image(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (200, 30, 60))


ONE, TWO = image(10, 20), image(30, 40)


def test_messages_are_one_completion() -> None:
    row = read_row({"messages": [user("what color?"), assistant("blue")], "image": ONE}, 4)
    assert row.index == 4
    assert not row.prompt
    assert row.completions == ([user([IMAGE, text("what color?")]), assistant([text("blue")])],)
    assert [item.size for item in row.images] == [(10, 20)]


def test_prompt_of_a_conversation() -> None:
    record = {"prompt": [{"role": "system", "content": "be brief"}, user("compare")], "images": [ONE, TWO]}
    row = read_row(record, 0)
    assert row.prompt == [
        {"role": "system", "content": [text("be brief")]},
        user([IMAGE, IMAGE, text("compare")]),
    ]
    assert row.completions == ()
    assert [item.size for item in row.images] == [(10, 20), (30, 40)]


def test_strings_stay_strings() -> None:
    row = read_row({"prompt": "what color?", "completion": "blue", "image": ONE}, 0)
    assert (row.prompt, row.completions, len(row.images)) == ("what color?", ("blue",), 1)
    row = read_row({"prompt": "is it red?", "chosen": "no", "rejected": ""}, 0)
    assert row.completions == ("no", "")


def test_preference() -> None:
    record = {"prompt": [user("what color?")], "chosen": [assistant("blue")], "rejected": [assistant("red")]}
    row = read_row(record | {"images": [TWO]}, 0)
    assert row.prompt == [user([IMAGE, text("what color?")])]
    assert row.completions == ([assistant([text("blue")])], [assistant([text("red")])])


def test_preference_with_the_prompt_inside_both() -> None:
    start = [user("hello"), assistant("hi"), user("what color?")]
    record = {"chosen": [*start, assistant("blue")], "rejected": [*start, assistant("red")], "image": ONE}
    row = read_row(record, 0)
    assert row.prompt == [user([IMAGE, text("hello")]), assistant([text("hi")]), user([text("what color?")])]
    assert row.completions == ([assistant([text("blue")])], [assistant([text("red")])])
    assert len(row.images) == 1


def test_a_shared_prompt_whose_images_differ_is_not_shared() -> None:
    with pytest.raises(ValueError, match="share no message"):
        read_row(
            {
                "chosen": [user([{"type": "image", "image": ONE}, text("?")]), assistant("a")],
                "rejected": [user([{"type": "image", "image": TWO}, text("?")]), assistant("b")],
            },
            0,
        )


@pytest.mark.parametrize(
    "columns", [{}, {"image": None}, {"images": None}, {"images": []}, {"image": None, "images": []}, {"image": ""}]
)
def test_no_image_in_every_way_of_saying_so(columns: dict[str, Any]) -> None:
    row = read_row({"prompt": [user("hello")], **columns}, 0)
    assert row.images == ()
    assert row.prompt == [user([text("hello")])]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_counts_of_images(count: int) -> None:
    images = [image(10 + place, 10) for place in range(count)]
    row = read_row({"prompt": [user("hello")], "images": images}, 0)
    assert [item.size[0] for item in row.images] == [10 + place for place in range(count)]
    assert row.prompt[0]["content"] == [IMAGE] * count + [text("hello")]  # pyright: ignore[reportArgumentType, reportIndexIssue]


def test_explicit_parts_keep_their_places() -> None:
    content = [text("first"), IMAGE, text("second"), IMAGE]
    row = read_row({"prompt": [user(content)], "images": [ONE, TWO]}, 0)
    assert row.prompt == [user(content)]


def test_parts_may_carry_their_images() -> None:
    content = [
        {"type": "image", "image": TWO, "text": None},
        {"type": "image", "text": None},
        {**text("x"), "image": None},
    ]
    row = read_row({"prompt": [user(content)], "images": [ONE]}, 0)
    assert [item.size for item in row.images] == [(30, 40), (10, 20)]  # the free place takes the column's
    assert row.prompt == [user([IMAGE, IMAGE, text("x")])]


def test_images_of_the_prompt_come_first() -> None:
    record = {"prompt": [user([IMAGE, text("draw")])], "completion": [assistant([text("here"), IMAGE])]}
    row = read_row(record | {"images": [ONE, TWO]}, 0)
    assert [item.size for item in row.images] == [(10, 20), (30, 40)]


def test_other_columns_are_untouched() -> None:
    mask, extra = image(5, 5), {"deep": [1, None]}
    row = read_row({"prompt": "hi", "image": ONE, "solution": "$4$", "mask": mask, "extra": extra}, 0)
    assert row.columns == {"solution": "$4$", "mask": mask, "extra": extra}
    assert row.columns["mask"] is mask


def test_the_record_is_not_changed() -> None:
    content = [{"type": "image", "image": ONE}, text("x")]
    record = {"prompt": [user(content)], "solution": None}
    read_row(record, 0)
    assert record == {"prompt": [user([{"type": "image", "image": ONE}, text("x")])], "solution": None}
    assert read_row(record, 0).columns == {"solution": None}


def test_tool_calls_and_names_are_kept() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "content": None}
    result = {"role": "tool", "name": "f", "content": "3"}
    row = read_row({"messages": [user("2+1?"), call, result, assistant("3")]}, 0)
    assert row.completions[0] == [
        user([text("2+1?")]),
        {"role": "assistant", "tool_calls": call["tool_calls"], "content": [text("")]},
        {"role": "tool", "name": "f", "content": [text("3")]},
        assistant([text("3")]),
    ]


def test_arrow_fills_with_none_what_is_absent() -> None:
    """Columns of other formats that are None in this row do not make it ambiguous."""
    record = {"messages": None, "prompt": "hi", "completion": None, "chosen": None, "rejected": None}
    assert read_row(record, 0).prompt == "hi"


def test_the_literal_placeholder_of_other_tools_is_refused_only_where_it_would_mislead() -> None:
    with pytest.raises(ImageError, match=r"^row 3: the text has the mark <image>, and no image is left for it"):
        read_row({"prompt": [user("<image>\nwhat color?")]}, 3)
    assert read_row({"prompt": [user("what does <image> mean in SVG?")]}, 3).images == ()
    explicit = [IMAGE, text("what does <image> mean?")]
    assert read_row({"prompt": [user(explicit)], "image": ONE}, 3).prompt == [user(explicit)]


def test_an_image_given_as_such_is_taken_as_such() -> None:
    loaded = load_image(ONE, where="here")
    assert read_row({"prompt": "x", "image": loaded}, 0).images == (loaded,)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("What color? blue", "What color? red", ("What color?", " blue", " red")),
        ("What color? blue", "What color? black", ("What color?", " blue", " black")),  # not inside a word
        ("Q: color?\nA: red", "Q: color?\nA:  blue", ("Q: color?\nA:", " red", "  blue")),
        ("a b c", "a b d", ("a b", " c", " d")),
    ],
)
def test_the_words_that_two_strings_share_are_the_prompt(chosen: str, rejected: str, expected: tuple[str, ...]) -> None:
    row = read_row({"chosen": chosen, "rejected": rejected}, 0)
    assert (row.prompt, *row.completions) == expected
    assert str(row.prompt) + str(row.completions[0]) == chosen


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("blue", "black", "share no word at their start"),
        (" blue", " red", "share no word at their start"),
        ("What? a", "What? a b", "one is the start of the other"),
        ("What? a", "What? a", "one is the start of the other"),
    ],
)
def test_two_strings_without_a_prompt(chosen: str, rejected: str, message: str) -> None:
    with pytest.raises(DataError, match=f"^row 2: .*{message}"):
        read_row({"chosen": chosen, "rejected": rejected}, 2)
