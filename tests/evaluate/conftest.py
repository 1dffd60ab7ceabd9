"""A tiny model."""

from __future__ import annotations

import pytest

from boresight.demo.tiny import build_tiny


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("models") / "tiny", seed=0, vocab_size=512))
