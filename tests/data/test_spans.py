from __future__ import annotations

import pytest

from boresight.data.spans import counted_tokens, produced_spans, unexpanded_offsets, without
from boresight.errors import DataError

TURNS = ["user", "assistant", "user", "assistant"]
PRODUCED = [role == "assistant" for role in TURNS]
SAID = ["why?", "so.", "oh", "yes"]


def chat(count: int, generation: bool) -> str:
    turns = "".join(f"[{role}]{said}<end>\n" for role, said in zip(TURNS[:count], SAID[:count], strict=True))
    return turns + "[assistant]" * generation


def test_spans_are_what_each_assistant_added() -> None:
    whole = chat(4, False)
    spans = produced_spans(PRODUCED, chat, where="row 0")
    assert [whole[start:end] for start, end in spans] == ["so.<end>\n", "yes<end>\n"]


def test_spans_from_a_later_message() -> None:
    assert produced_spans(PRODUCED, chat, start=2, where="row 0") == produced_spans(PRODUCED, chat, where="row 0")[1:]


def test_a_conversation_may_open_with_the_assistant() -> None:
    spans = produced_spans([True], lambda count, generation: "hello" * count, where="row 0")
    assert spans == [(0, 5)]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    def forgetful(count: int, generation: bool) -> str:
        return f"{count} messages so far. " + chat(count, generation)

    with pytest.raises(DataError, match="row 6: the chat template renders the conversation before message 1"):
        produced_spans(PRODUCED, forgetful, where="row 6")


def test_offsets_before_two_placeholders_were_expanded() -> None:
    # "ab<i>cd<i>e" became "abXXXXXcdYYe"
    replaced = [((2, 5), (2, 7)), ((7, 10), (9, 11))]
    tokens = [(0, 2), (2, 4), (4, 7), (7, 9), (9, 11), (11, 12), (1, 3), (0, 0)]
    assert unexpanded_offsets(tokens, replaced) == [
        (0, 2), (2, 4), (4, 5), (5, 7), (7, 10), (10, 11), (1, 3), (0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "counted"),
    [
        (None, [True] * 7),
        ([], [False] * 7),
        ([(2, 7)], [False, True, True, False, False, False, False]),  # what follows the end token does not count
        ([(2, 9)], [False, True, True, True, True, True, False]),  # through the last end token inside
        ([(7, 8)], [False, False, False, False, True, False, False]),  # no end token inside: all of it
        ([(3, 4)], [False, True, False, False, False, False, False]),  # a token that overlaps by one character
        ([(0, 1), (8, 9)], [True, False, False, False, False, True, False]),
    ],
)
def test_counted_tokens(spans: list[tuple[int, int]] | None, counted: list[bool]) -> None:
    offsets = [(0, 2), (2, 4), (4, 6), (6, 7), (7, 8), (8, 9), (9, 9)]
    assert counted_tokens([5, 6, 1, 7, 8, 1, 0], offsets, spans, {1}) == counted


@pytest.mark.parametrize(
    ("spans", "holes", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(3, 5)], [(0, 3), (5, 10)]),
        ([(0, 10)], [(0, 2), (8, 12)], [(2, 8)]),
        ([(0, 4), (6, 9)], [(2, 7)], [(0, 2), (7, 9)]),
        ([(3, 5)], [(0, 9)], []),
    ],
)
def test_holes_in_spans(
    spans: list[tuple[int, int]], holes: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert without(spans, holes) == left
