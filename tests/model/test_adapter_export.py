"""An adapter leaves the trainer by itself only where it is all that is trained, and a pair of factors for linear modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from boresight.demo.tiny import build_tiny
from boresight.errors import ConfigError
from boresight.model.adapter_export import PolicyAdapter
from boresight.model.export import PolicyWeights
from boresight.rollout.vllm.adapter import RANKS, lora_options

TARGETS = r".*language_model.*(q_proj|down_proj)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def base(folder: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def test_base_and_factors_make_up_the_merged_weights(base: Any) -> None:
    options: dict[str, Any] = {"lora_alpha": 6, "use_rslora": True, "rank_pattern": {"q_proj": 8}}
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **options))
    merged, bare, adapter = PolicyWeights(model), PolicyWeights(model, adapters=False), PolicyAdapter(model)
    expected = dict(merged.tensors(merged.listed))
    tensors = dict(bare.tensors(bare.listed))
    assert tensors.keys() == expected.keys()
    assert not any(weight.trained for weight in bare.listed.values())
    for name, down, up in adapter.factors():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + up @ down
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert (adapter.rank, adapter.images) == (8, False)


def test_without_an_adapter(base: Any) -> None:
    with pytest.raises(ConfigError, match=r"the policy has none: .* vllm_lora_sync='merged'"):
        PolicyAdapter(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"q_proj: vLLM serves only plain LoRA, but this adapter uses Dora"),
        ({"lora_bias": True}, r"q_proj: .* uses a bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.* is trained as well"),
        ({"bias": "all"}, "bias is trained as well"),
    ],
)
def test_what_is_more_than_an_adapter_is_refused_with_the_way_out(
    base: Any, options: dict[str, Any], message: str
) -> None:
    model = get_peft_model(base, LoraConfig(r=4, target_modules=r".*language_model.*q_proj", **options))
    with pytest.raises(ConfigError, match=f"{message}.*vllm_lora_sync='merged'"):
        PolicyAdapter(model)


def test_what_vllm_needs_for_a_rank_and_for_a_tower(base: Any) -> None:
    model = get_peft_model(base, LoraConfig(r=9, target_modules=r".*visual.*qkv"))
    adapter = PolicyAdapter(model)
    assert lora_options(adapter) == {"enable_lora": True, "max_lora_rank": 16, "enable_tower_connector_lora": True}


def test_a_rank_beyond_vllms(base: Any) -> None:
    model = get_peft_model(base, LoraConfig(r=RANKS[-1] + 1, target_modules=r".*layers.0.*q_proj"))
    with pytest.raises(ConfigError, match="lora_r=513 is above 512"):
        lora_options(PolicyAdapter(model))
