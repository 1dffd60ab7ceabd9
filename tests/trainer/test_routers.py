"""`router_aux_loss_coef`: experts' load-balancing loss is added to the method's, as TRL does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from boresight import SFTConfig, SFTTrainer
from tests.tiny import build_tiny
from tests.trainer.conftest import QUIET, demonstrations


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen3_vl_moe", tmp_path_factory.mktemp("experts"), vocab_size=512)


def trained(experts: Path, folder: Path, weight: float, **options: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights after a step of plain SGD, and the log."""
    config = SFTConfig(
        **{**QUIET, "output_dir": str(folder), "max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 1e9, "use_cpu": True,
           "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, "router_aux_loss_coef": weight, **options}
    )  # fmt: skip
    trainer = SFTTrainer(str(experts), config, demonstrations())
    trainer.train()
    weights = {name: each.detach().clone() for name, each in trainer.policy.model.named_parameters()}
    return weights, trainer.state.log_history[0]


def test_its_gradient_is_added_and_it_is_logged(experts: Path, tmp_path: Path) -> None:
    without, log = trained(experts, tmp_path / "0", 0.0)
    assert "aux_loss" not in log
    half, log_half = trained(experts, tmp_path / "1", 0.5)
    whole, log_whole = trained(experts, tmp_path / "2", 1.0)
    assert log_half["aux_loss"] == pytest.approx(log_whole["aux_loss"], abs=1e-5)
    assert log_half["aux_loss"] > 1  # the least is top_k of experts that share all tokens alike
    assert log_whole["loss"] - log["loss"] == pytest.approx(log_whole["aux_loss"], abs=1e-3)
    gate = next(name for name in without if name.endswith("mlp.gate.weight"))
    moved = whole[gate] - without[gate]
    assert moved.abs().max() > 1e-4
    torch.testing.assert_close(half[gate] - without[gate], moved / 2, atol=1e-5, rtol=1e-3)


def test_it_does_not_depend_on_the_layout(experts: Path, tmp_path: Path) -> None:
    shared, _ = trained(experts, tmp_path / "shared", 1.0, layout="shared")
    rows, _ = trained(experts, tmp_path / "rows", 1.0, layout="rows")
    for name, each in shared.items():
        torch.testing.assert_close(each, rows[name], atol=1e-4, rtol=1e-3)
