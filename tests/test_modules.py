from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from boresight.demo.tiny import build_tiny
from boresight.modules import evaluating, matching_arguments, unwrap


def test_unwrap(tmp_path: Path) -> None:
    inner: Any = AutoModelForImageTextToText.from_pretrained(build_tiny("qwen2_5_vl", tmp_path))
    assert unwrap(inner) is inner
    adapted: Any = get_peft_model(inner, LoraConfig(target_modules=["q_proj"]))
    compiled: Any = torch.compile(adapted)
    for wrapped in (adapted, nn.DataParallel(adapted), compiled, nn.DataParallel(compiled)):
        assert unwrap(wrapped) is inner


def test_only_named_arguments_are_kept() -> None:
    def takes(image_grid_thw: Tensor) -> None: ...

    grid, pixels = torch.ones(1, 3), torch.ones(4)
    assert matching_arguments(takes, {"image_grid_thw": grid, "pixel_values": pixels}) == {"image_grid_thw": grid}


def test_every_module_returns_to_its_mode_after_an_error_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Dropout()).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes
