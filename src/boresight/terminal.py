"""Text of others in a terminal: shown as it is written, and never obeyed."""

from __future__ import annotations


def printable(text: object) -> str:
    """A text without control characters: a tab becomes a space, any other one, and half of a surrogate pair, the replacement character.

    Line breaks stay. Markup is not touched: pass the text to rich as a `Text`, or through `rich.markup.escape`.
    """
    return "".join(
        char if char == "\n" or char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )
