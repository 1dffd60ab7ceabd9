"""Tiny models of every family, prompts with 0, 1, 2 and 5 images, and completions of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.data.made_up import example_source
from boresight.data.schema import read_row
from boresight.model.load import model_facts
from boresight.types import Completion, ExampleSource, Group, ModelFacts, Prompt
from tests.tiny import build_tiny

SIZES: dict[int, tuple[tuple[int, int], ...]] = {
    0: (),
    1: ((64, 96),),
    2: ((100, 50), (40, 64)),
    5: ((64, 64), (32, 32), (96, 48), (64, 64), (50, 70)),
}
"""Width and height of the images of a prompt that has so many: squares, tall and wide ones, tiled where the family tiles."""


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    width, height = size
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@dataclass(frozen=True)
class Subject:
    """A tiny checkpoint and what goes with it."""

    family: str
    folder: Path
    processor: Any
    facts: ModelFacts
    encoder: Encoder

    @property
    def examples(self) -> ExampleSource:
        return example_source(self.encoder)

    def model(self, **options: Any) -> Any:
        """Fresh weights, in evaluation mode."""
        return AutoModelForImageTextToText.from_pretrained(self.folder, **options).eval()

    def conversation(
        self, images: Sequence[Image.Image], text: str = "what color is the shape?"
    ) -> list[dict[str, Any]]:
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        return [{"role": "user", "content": parts}]

    def prompt(self, num_images: int, *, seed: int = 0, text: str = "what color is the shape?") -> Prompt:
        images = [noise(size, 10 * seed + place) for place, size in enumerate(SIZES[num_images])]
        return self.prompt_of(images, text)

    def prompt_of(self, images: Sequence[Image.Image], text: str = "what color is the shape?") -> Prompt:
        return self.encoder.prompt(read_row({"prompt": self.conversation(images, text)}, 0))

    def processed(self, prompt: Prompt) -> dict[str, Tensor]:
        """What transformers' own documented path makes of the prompt."""
        outputs = self.processor.apply_chat_template(
            self._with_images(prompt), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        return dict(outputs)

    def _with_images(self, prompt: Prompt) -> list[dict[str, Any]]:
        images = iter(prompt.images)
        message: Any = prompt.row.prompt[0]
        parts = [
            {"type": "image", "image": decode(next(images), where="test")} if part["type"] == "image" else part
            for part in message["content"]
        ]
        return [{"role": "user", "content": parts}]

    def group(self, prompt: Prompt, lengths: Sequence[int], *, seed: int = 0) -> Group:
        """Completions of random ordinary tokens."""
        draw = torch.Generator().manual_seed(seed)
        ordinary = torch.tensor(sorted(set(range(self.facts.vocab_size)) - set(self.facts.modality_ids)))
        completions = []
        for length in lengths:
            ids = ordinary[torch.randint(len(ordinary), (length,), generator=draw)]
            completions.append(Completion(ids, torch.ones(length, dtype=torch.bool), ""))
        return Group(prompt, tuple(completions))


Subjects = Callable[..., Subject]


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    """The checkpoint of a family, built once a session for each set of sizes."""

    @cache
    def build(family: str, **sizes: Any) -> Subject:
        folder = build_tiny(family, tmp_path_factory.mktemp(family), **{"vocab_size": 512, **sizes})
        processor = AutoProcessor.from_pretrained(folder)
        facts = model_facts(AutoModelForImageTextToText.from_pretrained(folder), processor)
        return Subject(family, folder, processor, facts, Encoder(processor, facts=facts))

    return build
