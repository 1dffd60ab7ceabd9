"""Ways of dividing a model that are refused, each with the way out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from boresight import SFTConfig
from boresight.errors import ConfigError
from boresight.trainer.sharding import check_gathers_layers, refuse_other_engines


@pytest.mark.parametrize(
    ("environment", "options", "match"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed is not supported: use FSDP2: --accelerate_config fsdp2"),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "FSDP's version 1 is not supported: use FSDP2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, {}, "version 1"),
        ({}, {"fsdp": "full_shard"}, "version 1"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            {},
            "set it to false",
        ),
    ],
)
def test_other_ways_are_refused(
    environment: dict[str, str], options: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = SFTConfig(use_cpu=True)
    for name, value in options.items():
        setattr(args, name, value)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=match):
        refuse_other_engines(args)


def test_fsdp2_and_one_process_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_other_engines(SFTConfig(use_cpu=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_other_engines(SFTConfig(use_cpu=True))


@pytest.mark.parametrize(
    ("layout", "joins", "options", "match"),
    [
        ("plain", True, {}, "the completions of Linear run one by one: set fsdp_reshard_after_forward: false"),
        ("shared", False, {}, "the images of Linear run one by one"),
        (
            "shared",
            True,
            {"activation_offloading": True, "gradient_checkpointing": False},
            "set gradient_checkpointing=True",
        ),
        ("shared", True, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "leave it out"),
    ],
)
def test_layers_are_gathered_in_passes_that_run_each_once(
    layout: str, joins: bool, options: dict[str, Any], match: str
) -> None:
    def forward(layout: str, joins: bool) -> Any:
        return SimpleNamespace(layout=layout, vision=SimpleNamespace(joins=joins), model=torch.nn.Linear(1, 1))

    check_gathers_layers(forward("shared", True), SFTConfig(use_cpu=True))
    with pytest.raises(ConfigError, match=match):
        check_gathers_layers(forward(layout, joins), SFTConfig(use_cpu=True, **options))


def test_deepspeed_is_refused_as_an_option() -> None:
    with pytest.raises(ConfigError, match="--accelerate_config fsdp2"):
        SFTConfig(use_cpu=True, deepspeed="ds.json")
