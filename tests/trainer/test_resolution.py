"""Training that rounding would undo is refused, before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from boresight import SFTConfig, SFTTrainer
from boresight.errors import ConfigError
from boresight.trainer.resolution import check_resolution

from .conftest import QUIET, Run, demonstrations

BF16 = {"model_init_kwargs": {"dtype": "bfloat16"}}


def test_full_training_in_bf16_below_its_resolution(sft: Run) -> None:
    with pytest.raises(
        ConfigError, match=r"learning_rate=1e-06 is below the resolution of bfloat16 .* Leave dtype unset"
    ):
        sft(**BF16, learning_rate=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {**BF16, "learning_rate": 1e-2},
        {**BF16, "learning_rate": 1e-6, "optim": "sgd"},  # its steps are as large as its gradients
        {**BF16, "learning_rate": 0.0},
        {"learning_rate": 1e-6},
    ],
)
def test_what_is_not_refused(sft: Run, options: dict[str, Any]) -> None:
    sft(**options)


def test_frozen_weights_may_be_as_coarse_as_they_like(model_folder: Path, tmp_path: Path) -> None:
    config = SFTConfig(**{**QUIET, "learning_rate": 1e-6}, **BF16, output_dir=str(tmp_path))
    adapter = LoraConfig(r=2, target_modules=["q_proj"])
    SFTTrainer(str(model_folder), config, demonstrations(4), peft_config=adapter)


@pytest.mark.parametrize(
    ("weights", "step", "refused"),
    [
        # bfloat16 has 8 bits: neighbours of 1 are 2^-8 below and 2^-7 above, and half of it is what rounding needs.
        ([1.0, 1.5, 1.5], 0.0038, True),
        ([1.0, 1.5, 1.5], 0.0040, False),
        ([1.0, 1.0, 1.5], 0.0021, False),
        ([1.0, 1.0, 1.5], 0.0019, True),
        ([0.0, 0.0, 1.5], 1e-9, False),
    ],
)
def test_the_bound_is_rounding_itself(weights: list[float], step: float, refused: bool) -> None:
    model = nn.Module()
    model.some = nn.Parameter(torch.tensor(weights, dtype=torch.bfloat16))
    args = type("Args", (), {"optim": "adamw_torch", "learning_rate": step})
    if refused:
        with pytest.raises(ConfigError, match="below the resolution"):
            check_resolution(model, args)
    else:
        check_resolution(model, args)
