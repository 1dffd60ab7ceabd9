"""Two tiny models, and a few questions about real images."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig

from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.model.load import adapt, load_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("models") / "base", seed=0, vocab_size=512))


@pytest.fixture(scope="session")
def other(base: str) -> str:
    return str(build_tiny("qwen2_5_vl", Path(base).with_name("other"), seed=1, vocab_size=512))


@pytest.fixture(scope="session")
def adapter(base: str) -> str:
    """Of `base`, far from it, and saved without a processor as peft does."""
    folder = Path(base).with_name("adapter")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
    model: object = adapt(load_model(base), config)
    model.save_pretrained(folder)  # pyright: ignore[reportAttributeAccessIssue]
    return str(folder)


@pytest.fixture(scope="session")
def questions() -> Dataset:
    return load_easy_vqa("test", num_rows=6, seed=3)
