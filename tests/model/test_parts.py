"""Where adapters land, on real models of six families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from torch import nn

from boresight.errors import ConfigError
from boresight.model.load import adapt, promote_trainable
from boresight.model.part_options import PartOptions, part_plan
from boresight.model.parts import adapted_modules, check_float, left_out, matches, summaries
from tests.model.conftest import Subjects

SIX = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "llava", "internvl", "gemma3"]


def landed(model: nn.Module, **options: Any) -> dict[str, set[str]]:
    """Part → the names of modules that an adapter landed on, without a plan."""
    return {part: set(words) for part, words in adapted_modules(adapt(model, LoraConfig(r=2, **options))).items()}


@pytest.mark.parametrize("family", SIX)
@pytest.mark.parametrize(
    "modules",
    [["q_proj", "v_proj"], ["k_proj", "o_proj", "up_proj"], r".*\.(q|v)_proj", r"model\..*_proj", None],
    ids=str,
)
def test_names_are_the_language_models(subject: Subjects, family: str, modules: Any) -> None:
    found = landed(subject(family).model(), target_modules=modules)
    assert found["language"] and not found["vision"] and not found["projector"]


@pytest.mark.parametrize("family", SIX)
def test_all_linear_is_every_part_as_in_peft(subject: Subjects, family: str) -> None:
    model = subject(family).model()
    linear = {part for part, words in landed(model, target_modules="all-linear").items() if words}
    assert linear == {"vision", "language"} | ({"projector"} if family != "gemma3" else set())  # a parameter, no layer


def test_a_name_that_only_another_part_has_asks_for_that_part(subject: Subjects) -> None:
    """In Gemma 3 the tower has q_proj too, and fc1 alone."""
    model = subject("gemma3").model()
    assert landed(model, target_modules=["q_proj", "fc1"]) == {
        "vision": {"fc1"},
        "projector": set(),
        "language": {"q_proj"},
    }
    qwen = subject("qwen2_5_vl").model()
    assert landed(qwen, target_modules=["qkv"])["vision"] == {"qkv"}


def test_an_adapter_on_nothing_is_refused_with_the_layers_that_there_are(subject: Subjects) -> None:
    config = LoraConfig(target_modules=["nothing_here"])
    with pytest.raises(
        ConfigError, match=r"nothing_here.* linear layers are called .*down_proj.*q_proj.* in lora_target_modules"
    ):
        adapt(subject("qwen2_5_vl").model(), config)


@pytest.mark.parametrize(
    "modules", [r".*vision_tower.*q_proj|.*language_model.*q_proj", ["encoder.layers.0.self_attn.q_proj"]]
)
def test_a_name_that_names_the_part_asks_for_it(subject: Subjects, modules: Any) -> None:
    assert landed(subject("gemma3").model(), target_modules=modules)["vision"] == {"q_proj"}


def test_the_users_own_exclusions_stay(subject: Subjects) -> None:
    model = subject("gemma3").model()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=["layers.0.self_attn.q_proj"])
    adapted = adapt(model, config)
    names = [name for name, _ in adapted.named_modules() if name.endswith("_proj.lora_A")]
    assert not any("layers.0.self_attn.q_proj" in name or "vision" in name for name in names)
    assert adapted_modules(adapted)["language"] == {"q_proj": 1, "v_proj": 2}
    assert (config.target_modules, config.exclude_modules) == ({"q_proj", "v_proj"}, {"layers.0.self_attn.q_proj"})


def test_what_is_left_out_is_counted(subject: Subjects) -> None:
    config = LoraConfig(target_modules=["q_proj", "up_proj"])
    assert left_out(config, subject("gemma3").model()) == {"q_proj": 2}
    assert left_out(config, subject("qwen2_5_vl").model()) == {"up_proj": 2}
    assert left_out(LoraConfig(target_modules="all-linear"), subject("gemma3").model()) == {}


@pytest.mark.parametrize(
    ("entry", "name", "expected"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.xq_proj", False),
        ("0.q_proj", "model.layers.10.q_proj", False),
        (".*q_proj", "model.layers.0.q_proj", True),
        ("q_pro.", "model.layers.0.q_proj", False),  # a name without the characters of patterns
        ("layers.(0|1).q_proj", "model.layers.0.q_proj", False),  # a pattern is for the whole name
    ],
)
def test_an_entry_matches_as_in_peft(entry: str, name: str, expected: bool) -> None:
    assert matches(entry, name) is expected


# ---- With a plan ---------------------------------------------------------------------------------------------------------------------


def planned(model: nn.Module, train: str, config: Any = None) -> nn.Module:
    return adapt(model, config, part_plan(PartOptions(train=train)))


def test_names_mean_the_plans_parts(subject: Subjects) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    only = adapted_modules(planned(subject("gemma3").model(), "vision=lora", config))
    assert only == {"vision": {"q_proj": 2}, "projector": {}, "language": {}}
    both = adapted_modules(planned(subject("gemma3").model(), "vision=lora,language=lora", config))
    assert both == {"vision": {"q_proj": 2}, "projector": {}, "language": {"q_proj": 2}}


@pytest.mark.parametrize(
    ("train", "config", "message"),
    [
        ("projector=lora,language=lora", None, r"projector=lora finds no layer .* write projector=full"),
        ("projector=lora", None, r"train: no layer .* of the parts that train adapts \(projector\)"),
        ("vision=lora,language=lora", {"target_modules": ["gate_proj"]}, r"vision=lora finds no layer"),
        ("language=full", {"target_modules": ["q_proj"]}, r"train adapts no part: write language=lora"),
        (
            "language=lora",
            {"target_modules": ["q_proj"], "modules_to_save": ["fc1"]},
            r"freezes vision, but .*fc1.* \(4 tensors",
        ),
    ],
)
def test_plans_that_cannot_be(subject: Subjects, train: str, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(subject("gemma3").model(), train, config and LoraConfig(**config))


def test_what_has_an_adapter_or_takes_none(subject: Subjects) -> None:
    model = planned(subject("gemma3").model(), "language=lora")
    with pytest.raises(ConfigError, match="adapter already: drop train"):
        planned(model, "language=lora")
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="PromptTuningConfig is neither"):
        planned(subject("gemma3").model(), "language=lora", prompts)
    with pytest.raises(ConfigError, match=r"w is quantised \(torch.uint8\).* write lora"):
        check_float("w", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False), trained=True)


def test_a_plan_decides_for_weights_that_were_frozen(subject: Subjects) -> None:
    model = subject("llava").model().requires_grad_(False)
    trained = {
        each.part: each.num_trainable == each.num_weights for each in summaries(planned(model, "projector=full"))
    }
    assert trained == {"vision": False, "projector": True, "language": False}


@pytest.mark.parametrize("train", ["projector=full", "vision=full", "projector=full,language=lora"])
def test_a_bf16_checkpoint_without_autocast(subject: Subjects, train: str) -> None:
    """Features pass from the tower to the projector in one dtype, whichever of them is trained."""
    it = subject("llava")
    model: Any = planned(it.model(dtype=torch.bfloat16), train)
    promote_trainable(model)
    images = it.prompt(1).vision
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    features = inner.get_image_features(**images, return_dict=True).pooler_output
    assert features[0].dtype == torch.float32
    assert {value.dtype for name, value in model.named_parameters() if "language" in name and "lora" not in name} == {
        torch.bfloat16
    }
