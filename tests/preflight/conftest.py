"""A set-up of a tiny model as a trainer makes it, which tests change in one place each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight.data import Encoder
from boresight.model.load import model_facts
from boresight.model.part_options import PartPlan
from boresight.preflight import SetUp
from tests.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: build_tiny(family, tmp_path_factory.mktemp(family), vocab_size=512))


@pytest.fixture
def set_up(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., SetUp]:
    """A set-up; `change` is called with its model and processor first."""

    def make(family: str = "qwen2_5_vl", change: Callable[[Any, Any], Any] | None = None, **options: Any) -> SetUp:
        folder = tiny_folder(family)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder)
        processor: Any = AutoProcessor.from_pretrained(folder)
        if change is not None:
            model = change(model, processor) or model
        facts = model_facts(model, processor)
        args = {
            "output_dir": str(tmp_path),
            "save_strategy": "steps",
            "save_only_model": False,
            "save_total_limit": None,
        }
        encoder = Encoder(processor, facts=facts)
        known = {name: options.pop(name) for name in ("peft_config", "parts", "max_tokens") if name in options}
        return SetUp(SimpleNamespace(**args | options), model, encoder, facts, known.pop("parts", PartPlan()), **known)

    return make
