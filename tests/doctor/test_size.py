"""What a plan knows of a model is what the model has."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.doctor.size import Stack, size_of
from boresight.families import family_of
from tests.tiny import build_tiny


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "gemma3", "qwen3_vl_moe"])
def test_weights_of_each_part(family: str, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(build_tiny(family, tmp_path / "model", vocab_size=512))
    size = size_of(str(tmp_path / "model"))
    record = family_of(model.config.model_type)
    for part, count in size.weights.items():
        assert count == sum(each.numel() for name, each in model.named_parameters() if record.part(name) == part)
    text = model.config.get_text_config()
    assert (size.language.num_layers, size.language.width) == (text.num_hidden_layers, text.hidden_size)
    assert size.num_head == model.get_output_embeddings().weight.numel()
    assert size.vision is not None and size.vision.num_layers == 2
    layers = sum(
        each.numel()
        for name, each in model.named_parameters()
        if record.part(name) == "language" and ".layers." in name
    )
    assert (
        size.num_active < layers if family == "qwen3_vl_moe" else 0 <= size.num_active - layers < 300
    )  # the last norm


def test_patches_of_a_token(tmp_path: Path) -> None:
    """As the tower reads them and the projector joins them."""
    found = {
        name: size_of(str(build_tiny(name, tmp_path / name, vocab_size=512))).patches_per_token
        for name in ("qwen2_5_vl", "smolvlm", "internvl", "llava")
    }
    assert found == {"qwen2_5_vl": 4.0, "smolvlm": 4.0, "internvl": 4.0, "llava": 1.0}


def test_bytes_of_a_layer_by_hand() -> None:
    stack = Stack(num_layers=3, width=10, kv_width=5, mlp_width=20)
    assert stack.layer_bytes(2) == 2 * (80 + 10 + 120)
    assert stack.kept_bytes(2, checkpointing=True) == 2 * 30
    assert stack.kept_bytes(2, checkpointing=False) == 2 * 2 * (80 + 10 + 80)
