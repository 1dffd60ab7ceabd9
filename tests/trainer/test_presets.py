from __future__ import annotations

import dataclasses
import re

import pytest

from boresight import DPOConfig, GRPOConfig
from boresight.errors import ConfigError
from boresight.loss.preference_options import MPO
from boresight.trainer.presets import PRESETS, described, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_configuration(name: str) -> None:
    """It contradicts nothing, every value arrives, and every value names its paper."""
    config = (DPOConfig if name == "mpo" else GRPOConfig)(use_cpu=True, **preset(name))
    assert {option: getattr(config, option) for option in preset(name)} == preset(name)
    lines = described(name).splitlines()
    assert len(lines) == len(PRESETS[name])
    assert re.search(r"arXiv \d{4}\.\d{5}", lines[0])


def test_mpo_is_the_table_rows() -> None:
    assert preset("mpo") == dict(MPO)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gspo'"):
        preset("gsop")


@pytest.mark.parametrize("accumulation", [1, 8])
def test_gspo_learns_four_steps_from_a_generation_however_a_step_is_cut(accumulation: int) -> None:
    """A literal 4 counts micro-batches, as in TRL: with 8 of them in a step, one generation serves one step."""
    cut = {"use_cpu": True, "per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation}
    config = GRPOConfig(**preset("gspo"), **cut)
    assert config.steps_per_generation == 4 * accumulation
    assert config.step_plan().steps_per_rollout == 4
    literal = GRPOConfig(**preset("gspo") | {"steps_per_generation": 4}, **cut)
    assert literal.step_plan().steps_per_rollout == (4 if accumulation == 1 else 1)
    # A copy, as trainers make of it, is not multiplied once more.
    assert dataclasses.replace(config).steps_per_generation == 4 * accumulation
