"""New weights arrive whole, where they belong, and are used; when they do not, the run stops and says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from boresight.data.encode import Encoder
from boresight.errors import EngineError, SyncError
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.protocol.messages import AbandonUpdate
from boresight.sampling import SamplingSettings

from .conftest import Rig, prompts_of
from .test_contract import furthest

SETTINGS = SamplingSettings(4, 10, seed=5)
Stream = Iterable[tuple[str, Tensor]]


class Wire:
    """An engine whose incoming weights are tampered with."""

    def __init__(self, engine: Engine, tamper: Callable[[Stream], Stream] = lambda stream: stream) -> None:
        self.engine = engine
        self.tamper = tamper
        self.received: list[str] = []
        self.resets: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def load(self, tensors: Callable[[], Stream], version: str, **options: Any) -> None:
        self.received = []

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in self.tamper(tensors()):
                self.received.append(name)
                yield name, tensor

        self.engine.load(noted, version, **options)

    def reset_caches(self, *, images: bool) -> None:
        self.resets.append(images)
        self.engine.reset_caches(images=images)


def move(rig: Rig, only: Callable[[str], bool] = lambda name: True) -> None:
    """A few large steps of an optimizer on some of the policy's weights."""
    optimizer = torch.optim.SGD([value for name, value in rig.model.named_parameters() if only(name)], lr=1.0)
    for seed in range(3):
        for group in optimizer.param_groups:
            for value in group["params"]:
                generator = torch.Generator().manual_seed(seed)
                value.grad = (
                    0.1 * value.detach().norm() * torch.randn(value.shape, generator=generator) / value.numel() ** 0.5
                )
        optimizer.step()
    optimizer.zero_grad()


PARTS = {
    "language model": lambda name: "language_model" in name,
    "projector": lambda name: "merger" in name,
    "tower": lambda name: "visual" in name and "merger" not in name,
    "everything": lambda name: True,
}


@pytest.mark.parametrize("part", PARTS)
def test_after_steps_the_engine_answers_as_the_trainer_does(engine: Engine, kept: Rig, part: str) -> None:
    """With every cache hot: images and prompts were seen under the old weights."""
    sampler = kept.sampler(engine)
    before = sampler.sample(kept.prompts, SETTINGS)
    move(kept, PARTS[part])
    moved = furthest(kept, before[:2])
    assert moved > 0.05  # the old completions would give themselves away
    sampler.outdate()
    sampler.sync(1)
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def test_stale_and_sleeping_engines_are_refused(local: Engine, rig: Rig) -> None:
    sampler = rig.sampler(local)
    sampler.outdate()
    with pytest.raises(EngineError, match="is stale: it must be synced"):
        sampler.sample(rig.prompts, SETTINGS)
    assert sampler.sync(1) is not None
    assert sampler.sync(1) is None  # nothing has moved


def test_images_of_an_old_tower_are_used_without_the_reset(local: Any, kept: Rig) -> None:
    """The control of the test above: without it, vLLM goes on with what it made of the images before."""
    wire = Wire(local)
    wire.reset_caches = lambda *, images: local.reset_caches(images=False)  # type: ignore[method-assign]
    sampler = kept.sampler(wire)  # pyright: ignore[reportArgumentType]
    local.reset_caches(images=True)
    sampler.sample(kept.prompts, SETTINGS)
    move(kept, PARTS["tower"])
    sampler.outdate()
    sampler.sync(1)
    groups = sampler.sample(kept.prompts, SETTINGS)
    assert furthest(kept, groups[:2]) > 0.01
    assert furthest(kept, groups[2:]) < 1e-3
    local.reset_caches(images=True)


def test_a_frozen_tower_is_sent_once_and_its_images_are_kept(local: Engine, kept: Rig) -> None:
    for name, parameter in kept.model.named_parameters():
        parameter.requires_grad_("visual" not in name)
    wire = Wire(local)
    sampler = kept.sampler(wire)  # pyright: ignore[reportArgumentType]
    assert any("visual" in name for name in wire.received)
    assert wire.resets == [True]
    move(kept, PARTS["language model"])
    sampler.outdate()
    sampler.sync(1)
    assert wire.received
    assert not any("visual" in name for name in wire.received)
    assert wire.resets == [True, False]
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def test_what_shares_a_module_goes_along(local: Engine, kept: Rig) -> None:
    """Only one q projection is trained: its bias, k and v are sent with it, and nothing else."""
    for name, parameter in kept.model.named_parameters():
        parameter.requires_grad_("layers.1.self_attn.q_proj.weight" in name)
    wire = Wire(local)
    sampler = kept.sampler(wire)  # pyright: ignore[reportArgumentType]
    move(kept, lambda name: "layers.1.self_attn.q_proj.weight" in name)
    sampler.outdate()
    sampler.sync(1)
    expected = {f"{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")}
    assert {name.partition("layers.1.self_attn.")[2] for name in wire.received} == expected
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def without(name: str) -> Callable[[Stream], Stream]:
    return lambda stream: ((each, tensor) for each, tensor in stream if name not in each)


def swapped(stream: Stream) -> Stream:
    """k and v of one layer, which have one shape, under one another's names."""
    other = {"k_proj": "v_proj", "v_proj": "k_proj"}
    for name, tensor in stream:
        part = next((part for part in other if f"layers.0.self_attn.{part}" in name), None)
        yield name if part is None else name.replace(part, other[part]), tensor


def old_tower(model: Any) -> Callable[[Stream], Stream]:
    """The tower's tensors as they are now, whenever they are asked for."""
    before = {
        tuple(value.shape): value.clone()
        for name, value in model.state_dict().items()
        if name.endswith("attn.qkv.weight")
    }
    return lambda stream: (
        (name, before[tuple(tensor.shape)] if "visual" in name and name.endswith("attn.qkv.weight") else tensor)
        for name, tensor in stream
    )


def renamed(stream: Stream) -> Stream:
    return (
        (name.replace("norm.weight", "gnorm.weight") if name.endswith("model.norm.weight") else name, tensor)
        for name, tensor in stream
    )


def twisted(stream: Stream) -> Stream:
    """One number of one matrix differs."""
    for name, tensor in stream:
        if name.endswith("layers.1.mlp.down_proj.weight"):
            tensor = tensor.clone()
            tensor[3, 5] += 1.0
        yield name, tensor


FAULTS = {
    "a part of a fused module": (lambda model: without("layers.0.self_attn.v_proj"), r"qkv_proj \(missing .*v_proj"),
    "a module of its own": (
        lambda model: without("layers.1.input_layernorm"),
        "did not receive .*layers.1.input_layernorm",
    ),
    "an old tower": (old_tower, r"does not hold the weights .*visual.blocks.\d.attn.qkv"),
    "swapped names": (lambda model: swapped, r"does not hold the weights .*layers.0.self_attn.qkv_proj"),
    "a number": (lambda model: twisted, r"does not hold the weights .*layers.1.mlp.down_proj"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sync_that_went_wrong_stops_the_run_and_names_what(engine: Engine, kept: Rig, fault: str) -> None:
    make, message = FAULTS[fault]
    wire = Wire(engine)
    sampler = kept.sampler(wire)  # pyright: ignore[reportArgumentType]
    wire.tamper = make(kept.model)
    move(kept)
    sampler.outdate()
    with pytest.raises(SyncError, match=message):
        sampler._push("test/1", everything=True)
    wire.tamper = lambda stream: stream
    sampler.sync(2)  # and the engine can go on
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def test_a_name_that_the_engine_does_not_know(local: Engine, kept: Rig) -> None:
    wire = Wire(local)
    sampler = kept.sampler(wire)  # pyright: ignore[reportArgumentType]
    wire.tamper = renamed
    sampler.outdate()
    with pytest.raises(EngineError, match="gnorm"):
        sampler.sync(1)
    local.call(AbandonUpdate())
    wire.tamper = lambda stream: stream
    sampler.sync(2)
    assert furthest(kept, sampler.sample(kept.prompts, SETTINGS)) < 1e-3


def test_an_adapter_is_merged_on_the_way_and_only_its_modules_are_sent(engine: Engine, kept: Rig) -> None:
    config = LoraConfig(r=4, target_modules=r".*language_model.*(q_proj|v_proj|down_proj)", init_lora_weights=False)
    model = get_peft_model(kept.model, config)
    try:
        wire = Wire(engine)
        sampler = kept.sampler(wire, model=model)  # pyright: ignore[reportArgumentType]
        assert furthest(kept, sampler.sample(kept.prompts, SETTINGS), model=model) < 1e-3
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-2.0)
        sampler.outdate()
        sampler.sync(1)
        assert {name.split(".")[-2] for name in wire.received} == {"q_proj", "k_proj", "v_proj", "down_proj"}
        assert furthest(kept, sampler.sample(kept.prompts, SETTINGS), model=model) < 1e-3
    finally:
        model.unload()


def test_another_pixel_budget_is_noticed_with_the_row_and_the_way_out(engine: Engine, rig: Rig) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(rig.folder)
    prompts = prompts_of(Encoder(processor, facts=rig.facts, max_pixels=32 * 32))
    sampler = rig.sampler(engine)
    with pytest.raises(EngineError, match=r"row 0: .* read another prompt than the trainer: .* --max_pixels"):
        sampler.sample(prompts, SETTINGS)


def test_a_prompt_that_does_not_fit_is_refused_with_its_row(local: Engine, rig: Rig) -> None:
    with pytest.raises(ValueError, match=r"row 0: .* max_completion_length=250 .* vllm_max_model_length"):
        rig.sampler(local).sample(rig.prompts, SamplingSettings(2, 250))


def test_each_image_is_encoded_once_for_the_whole_group(local: Any, rig: Rig) -> None:
    sampler = rig.sampler(local)
    local.reset_caches(images=True)
    seen: list[int] = []

    def watch(model: Any) -> Any:
        return model.visual.register_forward_hook(
            lambda module, given, made: seen.append(int(module.hidden_size > 0) * len(made))
        )

    (hook,) = local._llm.apply_model(watch)
    sampler.sample(rig.prompts, SamplingSettings(8, 4, seed=1))
    hook.remove()
    tokens = sum(int((prompt.token_types == 1).sum()) for prompt in rig.prompts)
    assert sum(seen) == tokens
