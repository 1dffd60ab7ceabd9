from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image

from boresight.types import Completion, Conversation, EncodedImage, Group, Prompt, Row


@pytest.fixture
def make_image() -> Callable[..., EncodedImage]:
    def make(colour: str, encoding: str = "PNG") -> EncodedImage:
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4), colour).save(buffer, encoding)
        content = buffer.getvalue()
        return EncodedImage(content, hashlib.sha256(content).hexdigest(), (6, 4))

    return make


@pytest.fixture
def make_group() -> Callable[..., Group]:
    def make(
        texts: Sequence[str],
        *,
        index: int = 0,
        prompt: str | Conversation = "what?",
        images: Sequence[EncodedImage] = (),
    ) -> Group:
        nothing = torch.tensor([], dtype=torch.long)
        completions = tuple(
            Completion(
                ids=torch.arange(len(text.split())),
                mask=torch.ones(len(text.split()), dtype=torch.bool),
                text=text,
                truncated=text.endswith("…"),
            )
            for text in texts
        )
        row = Row(index=index, prompt=prompt, completions=(), images=tuple(images), columns={})
        return Group(Prompt(row, nothing, nothing, {}, nothing), completions)

    return make
