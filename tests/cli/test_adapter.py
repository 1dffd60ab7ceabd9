from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.cli import read_command
from boresight.cli.adapter import lora_config, peft_config
from boresight.cli.options import AdapterFlags
from boresight.errors import ConfigError
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


def test_a_plan_needs_no_further_flag(tmp_path: Path) -> None:
    words = ["--model_name_or_path", "M", "--dataset_name", "D", "--output_dir", str(tmp_path), "--use_cpu"]
    command = read_command("sft", [*words, "--train", "language=lora", "--lr", "language=1e-4", "--lora_r", "8"])
    assert (command.training.train, command.training.lr) == ("language=lora", "language=1e-4")
    assert peft_config(command).r == 8
    assert peft_config(read_command("sft", [*words, "--train", "language=full"])) is None
    with pytest.raises(ConfigError, match="lora_r=8 has no effect: add --train language=lora"):
        read_command("sft", [*words, "--train", "language=full", "--lora_r", "8"])


def test_a_single_name_is_a_name_and_a_pattern_a_pattern() -> None:
    for word, expected in (("q_proj", {"q_proj"}), ("all-linear", "all-linear"), (".*[qv]_proj", ".*[qv]_proj")):
        assert lora_config(AdapterFlags(use_peft=True, lora_target_modules=[word])).target_modules == expected
