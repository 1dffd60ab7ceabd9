"""Training that rounding would undo is refused, before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from boresight import SFTConfig, SFTTrainer
from boresight.errors import ConfigError
from boresight.trainer.resolution import check_resolution
from boresight.trainer.stochastic_rounding import stochastic_optimizer, uncompiled_on_cpu

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


SR: dict[str, Any] = {**BF16, "bf16_stochastic_round": True}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch_8bit"])
def test_stochastic_rounding_moves_as_far_as_float32_on_average(optim: str) -> None:
    """Steps of 1e-5 on weights of 1, whose neighbour in bfloat16 is 390 steps away: nearest rounding moves none of them."""
    pytest.importorskip("torchao")
    args: Any = SimpleNamespace(optim=optim, learning_rate=1e-5, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8)
    cls, options = stochastic_optimizer(args)
    moved = {}
    kinds = {"float32": (torch.float32, None), "nearest": (torch.bfloat16, None), "stochastic": (torch.bfloat16, cls)}
    for name, (dtype, kind) in kinds.items():
        noise = torch.Generator().manual_seed(1)
        torch.manual_seed(2)
        weight = nn.Parameter(torch.ones(65536, dtype=dtype))
        optimizer = (
            torch.optim.AdamW([weight], lr=1e-5) if kind is None else uncompiled_on_cpu(kind([weight], **options))
        )
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        for _ in range(40):
            weight.grad = (1 + 0.5 * torch.randn(65536, generator=noise)).to(dtype)
            optimizer.step()
        moved[name] = float((1 - weight.detach().double()).mean())
    # 40 · 65,536 draws of about 1 in 400 have a relative standard error of 1.2 %.
    assert moved["stochastic"] == pytest.approx(moved["float32"], rel=0.06)
    assert moved["nearest"] == 0


@pytest.mark.parametrize(
    "further", [{}, {"optim": "adamw_torch_8bit"}, {"lr": "language=1e-6", "train": "language=full"}]
)
def test_bf16_weights_train_with_stochastic_rounding(sft: Run, further: dict[str, Any]) -> None:
    pytest.importorskip("torchao")
    trainer = sft(**SR, learning_rate=1e-5, max_steps=2, **further)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert "model.language_model.layers.0.mlp.up_proj.weight" in moved
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert type(trainer.optimizer.optimizer).__module__.startswith("torchao.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bf16_stochastic_round": True}, "trained weights are float32: load them in bfloat16"),
        ({**SR, "optim": "sgd"}, "needs optim=adamw_torch or .* and it is 'sgd'"),
    ],
)
def test_stochastic_rounding_without_effect(sft: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sft(**options).create_optimizer()
