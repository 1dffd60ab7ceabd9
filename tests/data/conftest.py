"""Real processors of tiny models, and real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import easy_vqa
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data import Encoder
from boresight.model.load import model_facts
from boresight.types import ModelFacts
from tests.tiny import build_tiny

EASY_VQA = Path(easy_vqa.__file__).parent / "data" / "train"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ModelFacts]]:
    """Folder and facts of a family's tiny model."""

    @cache
    def build(family: str) -> tuple[Path, ModelFacts]:
        folder = build_tiny(family, tmp_path_factory.mktemp(family))
        model = AutoModelForImageTextToText.from_pretrained(folder)
        return folder, model_facts(model, AutoProcessor.from_pretrained(folder))

    return build


@pytest.fixture
def encoder(tiny: Callable[[str], tuple[Path, ModelFacts]]) -> Callable[..., Encoder]:
    """An encoder of a family, with a processor of its own."""

    def make(family: str = "qwen2_5_vl", **options: Any) -> Encoder:
        folder, facts = tiny(family)
        return Encoder(AutoProcessor.from_pretrained(folder), facts=facts, **options)

    return make


@pytest.fixture
def questions() -> list[dict[str, Any]]:
    """Real questions: prompt, image (a path), solution."""
    rows = json.loads((EASY_VQA / "questions.json").read_text())[::60][:8]
    return [
        {"prompt": question, "image": str(EASY_VQA / "images" / f"{number}.png"), "solution": answer}
        for question, answer, number in rows
    ]
