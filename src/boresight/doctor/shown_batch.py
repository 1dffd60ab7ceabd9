"""The first batch as the loss sees it: what counts in green, what does not in grey, images as their number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from boresight.terminal import printable
from boresight.types import Completion, Group

COUNTS, PROMPT, LEFT_OUT, IMAGE = "bold green", "dim", "yellow", "cyan"


def legend() -> Text:
    """What the colours mean."""
    return Text.assemble(
        ("counts in the loss", COUNTS), ", ", ("prompt", PROMPT), ", ", ("completion that does not count", LEFT_OUT), ", ", ("image", IMAGE)
    )  # fmt: skip


def shown_groups(items: Sequence[Any], tokenizer: Any, image_token_id: int | None) -> Iterator[Text]:
    """One text for each completion of each group, or for a prompt alone that is yet to be completed.

    Args:
        items: groups, or prompts.
    """
    for item in items:
        group: Group | None = item if isinstance(item, Group) else getattr(item, "group", None)
        prompt: Any = item if group is None else group.prompt
        start = Text(f"row {prompt.row.index}: ", style="bold")
        start.append_text(_tokens(prompt.ids.tolist(), [PROMPT] * len(prompt.ids), tokenizer, image_token_id))
        if group is None:
            yield start
        for completion in group.completions if group is not None else ():
            yield start.copy().append_text(_completion(completion, tokenizer, image_token_id))


def _completion(completion: Completion, tokenizer: Any, image_token_id: int | None) -> Text:
    styles = [COUNTS if counts else LEFT_OUT for counts in completion.mask.tolist()]
    return _tokens(completion.ids.tolist(), styles, tokenizer, image_token_id)


def _tokens(ids: Sequence[int], styles: Sequence[str], tokenizer: Any, image_token_id: int | None) -> Text:
    """Tokens of one style are decoded together, so that characters of several tokens are whole."""
    text = Text()
    kinds = [IMAGE if id == image_token_id else style for id, style in zip(ids, styles, strict=True)]
    for kind, run in groupby(zip(ids, kinds, strict=True), key=lambda pair: pair[1]):
        together = [id for id, _ in run]
        decoded = f"[{len(together)} image tokens]" if kind == IMAGE else printable(tokenizer.decode(together))
        text.append(decoded, style=kind)
    return text
