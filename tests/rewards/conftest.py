from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from boresight.types import Completion, Conversation, EncodedImage, Group, Prompt, Row

MakeGroup = Callable[..., Group]


def a_group(
    texts: Sequence[str],
    *,
    index: int = 0,
    prompt: str | Conversation = "what colour?",
    images: Sequence[EncodedImage] = (),
    **columns: Any,
) -> Group:
    """A group with these completions, of a row with these columns."""
    nothing = torch.tensor([], dtype=torch.long)
    completions = tuple(
        Completion(ids=torch.arange(len(text.split())), mask=torch.ones(len(text.split()), dtype=torch.bool), text=text)
        for text in texts
    )
    row = Row(index=index, prompt=prompt, completions=(), images=tuple(images), columns=columns)
    return Group(Prompt(row, nothing, nothing, {}, nothing), completions)


@pytest.fixture
def make_group() -> MakeGroup:
    return a_group
