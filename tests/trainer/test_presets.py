from __future__ import annotations

import re

import pytest

from boresight import DPOConfig, GRPOConfig
from boresight.errors import ConfigError
from boresight.loss.preference import MPO
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
