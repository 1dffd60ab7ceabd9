"""The planner's memory is that of the models it plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from boresight.demo.tiny import build_tiny
from boresight.doctor.plan import Size, Way, first_that_fits, plan, size_of, step_seconds, tokens_that_fit, ways
from boresight.errors import ModelError

SEVEN = Size(num_weights=7_000_000_000, num_language=6_000_000_000, num_layers=28, width=3584)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


def test_the_weights_are_counted_as_the_model_has_them(model_folder: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(model_folder)
    size = size_of(str(model_folder))
    assert size.num_weights == sum(weight.numel() for weight in model.parameters())
    language = sum(weight.numel() for name, weight in model.named_parameters() if "visual" not in name)
    assert size.num_language == language
    assert (size.num_layers, size.width) == (
        model.config.text_config.num_hidden_layers,
        model.config.text_config.hidden_size,
    )


def test_bytes_of_each_way_by_hand() -> None:
    """In GB for 7 billion weights on 8 GPUs, of which 6 are of the language model, and 60 million of an adapter at 16 bytes."""
    found = {way.name: way.num_bytes / 1e9 for way in ways(SEVEN, 8)}
    adapter = 16 * 0.06
    assert found == {
        "full": pytest.approx(7 * (4 + 4 + 8)),
        "full, fsdp2": pytest.approx(7 * (2 + 4) + 16 * 7 / 8),
        "full, fsdp2_offload": pytest.approx(7 * (2 + 4)),
        "full, 8-bit optimizer": pytest.approx(7 * (4 + 4 + 2 + 2 / 64)),
        "full, bf16 with stochastic rounding": pytest.approx(7 * 8),
        "full, bf16 with stochastic rounding, 8-bit optimizer": pytest.approx(7 * (2 + 2 + 2 + 2 / 64)),
        "LoRA": pytest.approx(14 + adapter),
        "LoRA, 8-bit base": pytest.approx(6 + 2 + adapter),
        "LoRA, 4-bit base": pytest.approx(6 * 0.5625 + 2 + adapter),
    }
    assert not any("fsdp2" in way.name for way in ways(SEVEN, 1))


def test_tokens_are_what_is_left() -> None:
    way = Way("", (), weights=50e9, gradients=10e9, optimizer=0)
    per_token = 2 * 28 * 3584 + 34 * 3584
    assert tokens_that_fit(SEVEN, way, 80e9) == int((72e9 - 60e9 - 3 * 2**28) / per_token)
    assert tokens_that_fit(SEVEN, way, 60e9) == 0


def test_seconds_of_a_step() -> None:
    assert step_seconds(SEVEN, 100_000, 8) == pytest.approx(8 * 7e9 * 1e5 / (8 * 400e12))


def test_the_first_way_that_fits_is_taken() -> None:
    one, two = (Way(name, (), 0, 0, 0) for name in ("one", "two"))
    assert first_that_fits([one, two], [4095, 5000]) == (two, 5000)
    assert first_that_fits([one, two], [100_000, 5000]) == (one, 32_768)
    assert first_that_fits([one], [10]) is None


def test_the_set_up_is_yaml_and_too_small_gpus_are_refused(model_folder: Path) -> None:
    _, settings = plan(str(model_folder), 8, 80)
    assert yaml.safe_load(settings) == {
        "model_name_or_path": str(model_folder),
        "bf16": True,
        "accelerate_config": "multi_gpu",
        "num_processes": 8,
        "max_tokens_per_pass": 32_768,
    }
    with pytest.raises(ModelError, match=r"fits in no way on 2 GPUs of 0\.1 GB"):
        plan(str(model_folder), 2, 0.1)
    with pytest.raises(ModelError, match="has no config of a vision-language model"):
        plan(str(model_folder / "nothing"), 1, 80)
