"""The tokens that the assistant produced: spans of characters in the rendered text, mapped to tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from boresight.errors import DataError
from boresight.types import Message

Span = tuple[int, int]
"""Start and end, the end excluded."""


class RewrittenError(DataError):
    """The chat template renders earlier turns differently once more follow."""


def produced_spans(
    wanted: Sequence[bool], render: Callable[[int, bool], str], *, start: int = 0, where: str
) -> list[Span]:
    """Spans of some of the assistant's turns in the rendered conversation, in characters.

    Derived from rendered prefixes, so that no chat template needs marks for it: the turn is what the conversation up
    to and including it has beyond the conversation before it with the generation prompt.

    Args:
        wanted: for every message, whether it is one of these turns.
        render: the text of the first k messages, with the generation prompt or without.
        start: the first message that may count.
        where: what an error calls the row.

    Raises:
        RewrittenError: the template renders earlier turns differently once more follow.
    """
    whole = render(len(wanted), False)
    spans = []
    for place, is_wanted in enumerate(wanted):
        if not is_wanted or place < start:
            continue
        before = render(place, True) if place else ""
        after = render(place + 1, False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise RewrittenError(
                f"{where}: the chat template renders the conversation before message {place} differently once more "
                "follows, so the assistant's tokens cannot be identified. Split the row into prompt and completion, "
                "or train on the whole text (assistant_only_loss=False)."
            )
        spans.append((len(before), len(after)))
    return spans


@dataclass(frozen=True, slots=True)
class RenderedBranch:
    """A conversation up to one of the assistant's turns, as it was rendered when that turn was written."""

    text: str
    spans: tuple[Span, ...]
    """The turns in it that count, in characters."""
    num_messages: int
    """Messages in it."""


def rendered_branches(
    wanted: Sequence[bool], render: Callable[[int, bool], str], *, start: int = 0, where: str
) -> list[RenderedBranch]:
    """The branches of a conversation: each wanted turn is in one, after what was rendered before it.

    Args:
        wanted: for every message, whether it is one of the turns to learn.
        render: the text of the first k messages, with the generation prompt or without.
        start: the first message that may count.
        where: what an error calls the row.

    Raises:
        DataError: a turn does not begin with the generation prompt.
    """
    branches: list[RenderedBranch] = []
    for place, is_wanted in enumerate(wanted):
        if not is_wanted or place < start:
            continue
        before = render(place, True) if place else ""
        after = render(place + 1, False)
        if not after.startswith(before):
            raise DataError(
                f"{where}: the chat template renders the conversation before message {place} differently once that message follows, so "
                "the assistant's tokens cannot be identified. Pass chat_template_kwargs that make them agree (such as "
                "enable_thinking=False), or train on the whole text (assistant_only_loss=False)."
            )
        span = (len(before), len(after))
        if branches and before.startswith(branches[-1].text):
            branches[-1] = RenderedBranch(after, (*branches[-1].spans, span), place + 1)
        else:
            branches.append(RenderedBranch(after, (span,), place + 1))
    return branches


def is_rewritten(messages: Sequence[Message], render: Callable[[int, bool], str]) -> bool:
    """Whether one of the assistant's turns is rendered differently once the rest of the conversation follows."""
    whole = render(len(messages), False)
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    return any(not whole.startswith(render(place + 1, False)) for place in turns)


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """What is left of spans outside of holes; both in order."""
    left = []
    for start, end in spans:
        for hole_start, hole_end in holes:
            if start < hole_end and hole_start < end:
                if start < hole_start:
                    left.append((start, hole_start))
                start = hole_end
        if start < end:
            left.append((start, end))
    return left


def unexpanded_offsets(offsets: Sequence[Span], replaced: Sequence[tuple[Span, Span]]) -> list[Span]:
    """Spans of the expanded text's tokens in the text before images were expanded.

    Args:
        offsets: start and end of every token in the expanded text.
        replaced: for every placeholder, in order, its span in the original and in the expanded text.
    """
    starts = [new[0] for _, new in replaced]

    def original(position: int) -> int:
        place = bisect_right(starts, position) - 1
        if place < 0:
            return position
        (old_start, old_end), (new_start, new_end) = replaced[place]
        if position < new_end:
            return min(old_start + position - new_start, old_end)
        return position - new_end + old_end

    return [(original(start), original(end)) for start, end in offsets]


def counted_tokens(
    ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span] | None, stop_ids: Collection[int]
) -> list[bool]:
    """True for tokens that overlap a span, up to and including its last stop token: what follows that is the
    template's.

    `spans` None counts every token.
    """
    if spans is None:
        return [True] * len(ids)
    counted = [False] * len(ids)
    for start, end in spans:
        inside = [place for place, (left, right) in enumerate(offsets) if left < end and right > start]
        stops = [place for place in inside if ids[place] in stop_ids]
        for place in inside:
            counted[place] = not stops or place <= stops[-1]
    return counted
