from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, OPTConfig, OPTForCausalLM

from boresight.demo.tiny import build_tiny
from boresight.modules import evaluating, matching_arguments, switch_off_dropout, unwrap

OPT = {
    "vocab_size": 16,
    "hidden_size": 8,
    "word_embed_proj_dim": 8,
    "ffn_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


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


def test_dropout_of_modules_and_of_functions_is_switched_off() -> None:
    """OPT, in BLIP-2, calls the function with a probability that it holds."""
    model: Any = OPTForCausalLM(OPTConfig(**OPT, dropout=0.5)).train()
    ids = torch.arange(16)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    switch_off_dropout(model)
    assert model.training and torch.equal(model(ids).logits, model(ids).logits)
    module = nn.Dropout(0.5)
    switch_off_dropout(module)
    assert module.p == 0.0
