"""Weights in 4 and 8 bits: the numbers that are computed with are those that quantisation left, whatever mode the model is in."""

from __future__ import annotations

import logging
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from boresight.demo.tiny import build_tiny
from boresight.errors import ConfigError, ModelError
from boresight.model.export import PolicyWeights
from boresight.model.load import adapt, load_model
from boresight.model.part_options import PartPlan
from boresight.model.parts import check_float, summaries
from boresight.model.quantised import dequantise, dequantised, quantised_layers, quantised_options, settle, unreadable
from boresight.model.verification import FLOAT32, HALF, bounds_of
from boresight.modules import num_bytes, num_weights, quantisation

pytest.importorskip("bitsandbytes", reason="an extra, which is not installed here")

FOUR: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT: dict[str, Any] = {"load_in_8bit": True}
IDS = torch.arange(20, 60)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("config", [FOUR, FOUR | {"bnb_4bit_use_double_quant": True}, EIGHT], ids=["4", "nested", "8"])
def test_every_quantised_layer_computes_with_the_numbers_it_stands_for(folder: Path, config: dict[str, Any]) -> None:
    model, plain = (load_model(folder, **options) for options in ({"quantization_config": config}, {}))
    layers = dict(quantised_layers(model))
    assert "model.language_model.layers.1.mlp.down_proj" in layers and "lm_head" not in layers
    for name, layer in layers.items():
        weight = dequantised(layer).float()
        original: Any = plain.get_submodule(name)
        worst = (weight - original.weight).abs().max() / original.weight.abs().max()
        assert 0 < worst < (0.2 if config is not EIGHT else 0.01), name
        inputs = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = nn.functional.linear(inputs, weight, layer.bias)  # pyright: ignore[reportArgumentType]
        # 8 bits round the inputs as well.
        torch.testing.assert_close(layer(inputs), expected, atol=1e-5 if config is not EIGHT else 5e-2, rtol=0)


def test_layers_that_the_cpu_reads_wrongly_are_left_out_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The vision tower is 32 wide, and a block has 64 weights. bitsandbytes would read those layers with wrong scales."""
    with caplog.at_level(logging.WARNING):
        model = load_model(folder, quantization_config=FOUR)
    (line,) = [record.getMessage() for record in caplog.records if "layers stay as they are" in record.getMessage()]
    assert line.startswith("8 layers stay as they are") and "model.visual.blocks.0.attn.qkv, " in line
    assert model.get_submodule("model.visual.blocks.0.attn.qkv").weight.dtype == torch.float32
    assert "model.visual.blocks.0.mlp.down_proj" in dict(quantised_layers(model))
    assert model.get_submodule("lm_head").weight.dtype == torch.float32  # as without a list of our own
    asked = FOUR | {"llm_int8_skip_modules": ["model.visual", "lm_head"]}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert quantised_options(folder, {"quantization_config": asked})[
            "quantization_config"
        ].llm_int8_skip_modules == ["model.visual", "lm_head"]
    assert not caplog.records  # nothing further is left out


def test_the_fault_that_layers_are_left_out_for() -> None:
    """Its kernel for AVX-512 reads them with wrong scales. If this fails, bitsandbytes reads them rightly, and `unreadable` can go."""
    functional: Any = pytest.importorskip("bitsandbytes").functional
    weight = torch.linspace(-1, 1, 96 * 32).reshape(96, 32).sin() * torch.linspace(0.01, 2, 96)[:, None]
    worst = []
    for shape in ((96, 32), (48, 64)):  # the same weights in the same blocks
        codes, state = functional.quantize_4bit(weight.reshape(shape), blocksize=64, quant_type="nf4")
        read = functional.dequantize_4bit(codes, state).reshape(96, 32)
        worst.append(float((read - weight).abs().max()))
    assert worst[1] < 0.2
    assert (worst[0] > 0.2) == (torch.backends.cpu.get_cpu_capability() == "AVX512")
    assert unreadable(nn.Sequential(nn.Linear(32, 96), nn.Linear(64, 48))) == ["0"]


def test_a_pass_without_gradients_leaves_the_weights_as_they_are(folder: Path) -> None:
    model = load_model(folder, quantization_config=FOUR).train()
    before = [dequantised(layer) for _, layer in quantised_layers(model)]
    trained = model(input_ids=IDS).logits.detach()
    evaluated = logits(model.eval())
    torch.testing.assert_close(evaluated, trained, atol=1e-5, rtol=0)
    for kept, (_, layer) in zip(before, quantised_layers(model), strict=True):
        assert torch.equal(kept, dequantised(layer))


def test_bounds_of_verification(folder: Path) -> None:
    coarse = FOUR | {"bnb_4bit_compute_dtype": "bfloat16"}
    found = [bounds_of(load_model(folder, quantization_config=config)) for config in (FOUR, coarse, EIGHT)]
    assert found == [FLOAT32, HALF, HALF]


def test_dequantised_as_a_whole(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, quantization_config=FOUR)
    expected = logits(model.eval())
    plain: Any = dequantise(model)
    assert not dict(quantised_layers(plain)) and quantisation(plain) is None
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=0)
    plain.save_pretrained(tmp_path)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(
        logits(AutoModelForImageTextToText.from_pretrained(tmp_path)), expected, atol=1e-5, rtol=0
    )


def test_parts_count_weights_and_bytes(folder: Path) -> None:
    plain, model = load_model(folder), load_model(folder, quantization_config=FOUR)
    for one, other in zip(summaries(plain), summaries(model), strict=True):
        assert one.num_weights == other.num_weights
    layer: Any = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert num_weights(layer.weight) == 128 * 64
    # Half a byte a weight, and a float32 for each block of 64.
    assert num_bytes(layer.weight) == 128 * 64 // 2 + 4 * 128
    eight: Any = load_model(folder, quantization_config=EIGHT).get_submodule(
        "model.language_model.layers.0.mlp.up_proj"
    )
    assert num_bytes(eight.weight) == 128 * 64 + 4 * 128


@pytest.mark.parametrize("config", [FOUR, EIGHT], ids=["4", "8"])
def test_an_engine_receives_numbers(folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    """The base is listed under its saved names, as the numbers that the trainer computes with, so nothing is quantised again."""
    policy = adapt(
        load_model(folder, quantization_config=config),
        None,
        PartPlan(how={"language": "lora", "vision": "frozen", "projector": "frozen"}),
    )
    weights, plain = PolicyWeights(policy, adapters=False), PolicyWeights(load_model(folder))
    assert weights.listed.keys() == plain.listed.keys()
    found = dict(weights.tensors(weights.listed))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, tmp_path / "model.safetensors")
    copyfile(folder / "config.json", tmp_path / "config.json")
    received = load_model(tmp_path)
    with policy.disable_adapter():  # pyright: ignore[reportCallIssue]
        expected = logits(policy.eval())
    torch.testing.assert_close(logits(received), expected, atol=1e-5 if config is FOUR else 0.2, rtol=0)
    with pytest.raises(ConfigError, match=r"vllm_lora_sync='merged' would merge .* Set vllm_lora_sync='adapter'"):
        PolicyWeights(policy)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "only one can be used"),
        ({"load_in_4bits": True}, "no option 'load_in_4bits'"),
        ({"bnb_4bit_quant_type": "nf4"}, "quantises nothing"),
        ({"load_in_4bit": "yes"}, "must be a boolean"),
    ],
)
def test_a_configuration_that_says_nothing_sensible(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(folder, quantization_config=given)


def test_a_loaded_model_that_cannot_be_read_here(folder: Path) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**FOUR))
    with pytest.raises(ModelError, match=r"attn\.qkv is 32 wide, .* a multiple of 64"):
        settle(loaded)


def test_codes_in_a_floating_dtype_are_not_trained(folder: Path) -> None:
    model = load_model(folder, quantization_config=FOUR | {"bnb_4bit_quant_storage": "bfloat16"})
    weight: Any = model.get_submodule("model.language_model.layers.0.mlp.up_proj").weight
    assert weight.dtype == torch.bfloat16 and num_weights(weight) == 128 * 64
    with pytest.raises(ConfigError, match="is quantised"):
        check_float("w", weight, trained=True)
