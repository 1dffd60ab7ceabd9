from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.cli.adapter import lora_config
from boresight.cli.options import AdapterFlags
from boresight.model.load import adapt
from tests.tiny import build_tiny


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava", "internvl", "gemma3"])
def test_by_default_the_language_model_gets_an_adapter_and_the_eyes_get_none(family: str, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(build_tiny(family, tmp_path))
    language = model.model.language_model if hasattr(model.model, "language_model") else model.model.text_model
    adapted = adapt(model, lora_config(AdapterFlags(use_peft=True)))
    inside = {name for name, _ in language.named_parameters() if "lora_A" in name}
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad and "lora_A" in name}
    assert len(trained) == len(inside) > 0
    assert {name.split(".")[-4] for name in inside} >= {"q_proj", "v_proj", "up_proj", "down_proj"}


def test_everything_when_asked() -> None:
    config = lora_config(
        AdapterFlags(use_peft=True, lora_target_modules=["all-linear"], lora_modules_to_save=["lm_head"])
    )
    assert (config.target_modules, config.exclude_modules, config.modules_to_save) == ("all-linear", None, ["lm_head"])
