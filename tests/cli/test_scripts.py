"""The first lines of TRL's scripts, with the import changed, beside TRL's own where it can be asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trl

import boresight
from boresight.errors import ConfigError

GROUPS = ("ScriptArguments", "SFTConfig", "ModelConfig", "DatasetMixtureConfig")
WORDS = [
    *("--dataset_name", "rows", "--dataset_test_split", "dev", "--model_name_or_path", "m", "--use_cpu", "--bf16", "False"),
    *("--use_peft", "--lora_r", "4", "--learning_rate", "3e-4", "--output_dir", "out", "--test_split_size", "0.25"),
]  # fmt: skip


def parsed(library: Any, words: list[str], **options: Any) -> Any:
    return library.TrlParser(tuple(getattr(library, name) for name in GROUPS)).parse_args_and_config(words, **options)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_groups_of_arguments_as_trl_reads_them() -> None:
    for ours, theirs in zip(parsed(boresight, WORDS), parsed(trl, WORDS), strict=True):
        assert type(ours).__name__ == type(theirs).__name__
        for name in (
            *("dataset_name", "dataset_test_split", "model_name_or_path", "use_peft", "lora_r", "learning_rate"),
            *("output_dir", "test_split_size", "datasets", "streaming"),
        ):
            assert getattr(ours, name, None) == getattr(theirs, name, None)


def test_a_file_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_NAME", "before")
    part = {"path": "json", "data_files": "rows.jsonl", "split": "train"}
    given = {"env": {"SOME_NAME": 7}, "learning_rate": 1e-3, "lora_r": 8, "streaming": True, "datasets": [part]}
    (tmp_path / "options.yaml").write_text(json.dumps(given))
    words = [*WORDS[2:], "--config", "options.yaml"]
    _, training, model, mixture = parsed(boresight, words)
    theirs = parsed(trl, words)
    assert os.environ["SOME_NAME"] == "7"
    assert (training.learning_rate, model.lora_r) == (theirs[1].learning_rate, theirs[2].lora_r) == (3e-4, 4)
    assert mixture.streaming and theirs[3].streaming
    assert (mixture.datasets[0].path, mixture.datasets[0].data_files) == ("json", "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "solution": "007"}\n')
    mixture.test_split_size = None
    (row,) = boresight.get_dataset(mixture)["train"]
    assert row["solution"] == "007"


def test_what_the_file_may_not_hold(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("learning_rat: 1\n")
    words = [*WORDS, "--config", "options.yaml"]
    with pytest.raises(ConfigError, match=r"there is no option 'learning_rat'\. Did you mean 'learning_rate'"):
        parsed(boresight, words)
    *_, rest = parsed(boresight, [*words, "--mine", "1"], return_remaining_strings=True)
    assert rest == ["--mine", "1", "--learning_rat=1"]
    assert len(parsed(boresight, words, fail_with_unknown_args=False)) == len(GROUPS)
    with pytest.raises(ConfigError, match="--config needs the path"):
        parsed(boresight, [*WORDS, "--config"])


def test_the_adapter() -> None:
    _, _, model, _ = parsed(boresight, WORDS)
    _, _, theirs, _ = parsed(trl, WORDS)
    ours, other = boresight.get_peft_config(model), trl.get_peft_config(theirs)
    assert ours is not None and other is not None
    for name in ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "use_rslora", "use_dora", "modules_to_save"):
        assert getattr(ours, name) == getattr(other, name), name
    assert boresight.get_peft_config(boresight.ModelConfig()) is None


def test_quantisation_is_transformers_own() -> None:
    assert boresight.get_quantization_config(boresight.ModelConfig()) is None
    four = boresight.get_quantization_config(
        boresight.ModelConfig(load_in_4bit=True, use_bnb_nested_quant=True, dtype="bfloat16")
    )
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_use_double_quant
    assert str(four.bnb_4bit_compute_dtype) == "torch.bfloat16"
    assert boresight.get_quantization_config(boresight.ModelConfig(load_in_8bit=True)).load_in_8bit
    for given, message in (
        ({"load_in_4bit": True, "load_in_8bit": True}, "leave one of them out"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "uint8"}, "serves FSDP alone"),
        ({"use_bnb_nested_quant": True}, "load_in_4bit"),
    ):
        with pytest.raises(ConfigError, match=message):
            boresight.get_quantization_config(boresight.ModelConfig(**given))
