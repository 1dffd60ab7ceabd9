"""docs/differences.md beside TRL itself: every name of both, and what the page says of TRL where TRL can be asked cheaply."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import TrainingArguments

import boresight
from boresight.trainer.config import default_of
from tests.docs.pages import ROOT, prose

FILE = ROOT / "docs" / "differences.md"
PAGE = prose(FILE)
NAMED = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
CONFIGS = ("SFTConfig", "DPOConfig", "GRPOConfig", "RLOOConfig")
TRAINERS = ("SFTTrainer", "DPOTrainer", "GRPOTrainer", "RLOOTrainer")
NOT_A_CHOICE = {"output_dir"}
"""Where a run is written has a default of its own in each project."""


def options(module: object, config: str) -> dict[str, object]:
    return {option.name: default_of(option) for option in fields(getattr(module, config))}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_that_is_absent_is_on_the_page(config: str) -> None:
    absent = options(trl, config).keys() - options(boresight, config).keys()
    assert sorted(absent - NAMED) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_every_other_default_is_on_the_page(config: str) -> None:
    theirs, ours = options(trl, config), options(boresight, config)
    other = {name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name]}
    assert sorted(other - NAMED - NOT_A_CHOICE) == []


def test_the_options_that_only_boresight_has_are_all_on_the_page() -> None:
    (listed,) = re.findall(r"Only here: (.+?)\.\n", PAGE, re.DOTALL)
    ours = set().union(*(options(boresight, config) for config in CONFIGS))
    theirs = set().union(*(options(trl, config) for config in CONFIGS))
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(ours - theirs)


def test_no_option_said_to_be_absent_is_here() -> None:
    """Of the table of configurations, whose rows say `absent`."""
    table = PAGE[PAGE.index("| option of TRL |") : PAGE.index("Only here:")]
    said = {name for row in table.splitlines() if "absent" in row for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert table.count("| refused |") > 3
    here = {name for config in CONFIGS for name in options(boresight, config)}
    both = {"loss_type", "disable_dropout", "max_length"}
    """Absent from one configuration, there in another: the row says which."""
    assert sorted((said & here) - both) == []


def test_every_trainer_that_only_trl_has_is_on_the_page() -> None:
    theirs = {name for name in dir(trl) if name.endswith("Trainer")}
    assert {"KTOTrainer", "RLOOTrainer"} < theirs
    assert sorted(theirs - set(dir(boresight)) - NAMED) == []


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_parameter_that_only_one_has_is_on_the_page(trainer: str) -> None:
    theirs, ours = (set(inspect.signature(getattr(module, trainer)).parameters) for module in (trl, boresight))
    assert sorted((theirs ^ ours) - NAMED) == []


@pytest.mark.parametrize("config", CONFIGS)
def test_options_of_trl_that_are_refused_are_on_the_page(config: str) -> None:
    """Its own, and those of transformers that people do use."""
    inherited = {option.name for option in fields(TrainingArguments)}
    used = {"auto_find_batch_size", "deepspeed", "parallelism_config", "torch_compile", "liger_kernel_config"}
    refused = getattr(boresight, config).unsupported.keys() & options(trl, config).keys()
    assert refused >= used
    assert sorted((refused - inherited | used) - NAMED) == []


# ---- What the page says of TRL ------------------------------------------------------------------------------------------------------


def source(module: Any) -> str:
    return Path(inspect.getsourcefile(module) or "").read_text()


def test_trl_finds_a_batch_size_in_sft_and_dpo_and_not_in_grpo(tmp_path: Path) -> None:
    given: dict[str, Any] = {"output_dir": str(tmp_path), "auto_find_batch_size": True, "use_cpu": True, "bf16": False}
    assert trl.SFTConfig(**given).auto_find_batch_size and trl.DPOConfig(**given).auto_find_batch_size
    with pytest.raises(ValueError, match="auto_find_batch_size is not supported by GRPO"):
        trl.GRPOConfig(**given)


def test_trl_asks_a_server_for_n_completions_and_its_own_engine_for_one() -> None:
    from trl.generation import vllm_client, vllm_generation

    generation = source(vllm_generation)
    assert '"n": num_generations' in generation and '"n": 1,' in generation
    assert "suppress" not in generation and "bad_words" not in generation
    # NCCL is the server's.
    assert "load_weights([(name, param)])" in generation
    assert "NCCL" in source(vllm_client) or "nccl" in source(vllm_client)


def test_trl_hands_any_flag_to_vllm_serve() -> None:
    from trl.scripts.vllm_serve import ScriptArguments, build_command

    assert build_command(ScriptArguments(model="some"), ["--max-num-seqs", "7"])[-2:] == ["--max-num-seqs", "7"]


def test_trl_suppresses_the_image_token_alone() -> None:
    assert 'generation_kwargs["suppress_tokens"] = [model.config.image_token_id]' in source(trl.GRPOTrainer)


def test_trl_names_a_cut_through_image_tokens_and_logs_mean_logits() -> None:
    for trainer in (trl.SFTTrainer, trl.DPOTrainer):
        assert "is too short and causes image placeholder" in source(trainer)
    assert "outputs.mean_logits" in source(trl.DPOTrainer)


def test_trl_takes_no_row_without_an_image_beside_those_with_one() -> None:
    """`image: None` becomes a list with None in it, which no processor takes; in GRPO `images: []` becomes None among lists."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    assert 'example["images"] = [example.pop("image")]' in source(DataCollatorForVisionLanguageModeling)
    assert 'example["images"] = [example.pop("image")]' in source(trl.DPOTrainer)
