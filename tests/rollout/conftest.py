"""Tiny models of every family, and prompts with none, one and two images of different sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.model.load import model_facts
from boresight.types import ModelFacts, Prompt
from tests.tiny import build_tiny

QUESTIONS = ("what color is the shape?", "which of the two is larger, and why?", "say anything")
SIZES = (((64, 96),), ((48, 64), (96, 40)), ())
"""Width and height of each prompt's images: prompts differ in length and, in M-RoPE models, in how positions run."""


@dataclass(frozen=True)
class Subject:
    """A tiny model and what goes with it."""

    family: str
    model: Any
    processor: Any
    facts: ModelFacts
    prompts: tuple[Prompt, ...]


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = torch.randint(
        0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    @lru_cache
    def build(family: str) -> Subject:
        folder = build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        facts = model_facts(model, processor)
        encoder = Encoder(processor, facts=facts)
        prompts = []
        for index, (question, sizes) in enumerate(zip(QUESTIONS, SIZES, strict=True)):
            images = [noise(size, 10 * index + place) for place, size in enumerate(sizes)]
            parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
            record = {"prompt": [{"role": "user", "content": parts}], "images": images}
            prompts.append(encoder.prompt(read_row(record, index)))
        return Subject(family, model, processor, facts, tuple(prompts))

    return build
