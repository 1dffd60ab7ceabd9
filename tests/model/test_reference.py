from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from boresight.model.forward import GroupForward
from boresight.model.reference import Reference
from boresight.types import Group
from tests.model.conftest import Subject, Subjects


def groups_of(it: Subject) -> list[Group]:
    return [it.group(it.prompt(1), (4, 2)), it.group(it.prompt(2), (3, 5))]


def logp(forward: GroupForward, groups: list[Group]) -> Tensor:
    with torch.no_grad():
        return forward(groups).logp


def train_a_step(forward: GroupForward, groups: list[Group]) -> None:
    optimizer = torch.optim.SGD([weight for weight in forward.outer.parameters() if weight.requires_grad], lr=0.1)
    forward(groups).logp.mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def adapted(it: Subject, **options: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(
        it.model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    )


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "qwen3_5"])
def test_an_adapter_switched_off_is_the_base_model(subject: Subjects, family: str) -> None:
    it = subject(family)
    groups = groups_of(it)
    base = logp(GroupForward(it.model(), it.facts), groups)
    policy = GroupForward(adapted(it), it.facts)
    reference = Reference(policy)
    assert reference.forward is policy  # no second model
    before = logp(policy, groups)
    assert (before - base).abs().max() > 0.01
    torch.testing.assert_close(reference(groups).logp, base, atol=1e-6, rtol=0)
    assert torch.equal(logp(policy, groups), before)  # and on again
    train_a_step(policy, groups)
    assert (logp(policy, groups) - before).abs().max() > 1e-3
    torch.testing.assert_close(reference(groups).logp, base, atol=1e-6, rtol=0)


def test_an_adapter_on_the_tower_is_switched_off_too(subject: Subjects) -> None:
    """Features of the adapted tower are never taken for those of the bare one, nor the other way round."""
    it = subject("qwen2_5_vl")
    groups = groups_of(it)
    torch.manual_seed(0)
    model = get_peft_model(it.model(), LoraConfig(r=4, target_modules=["qkv"], init_lora_weights=False))
    policy = GroupForward(model, it.facts)
    reference = Reference(policy)
    base, own = logp(GroupForward(it.model(), it.facts), groups), logp(policy, groups)
    assert (own - base).abs().max() > 0.01
    for _ in range(2):
        torch.testing.assert_close(reference(groups).logp, base, atol=1e-6, rtol=0)
        assert torch.equal(logp(policy, groups), own)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_a_frozen_copy_does_not_learn(subject: Subjects, family: str) -> None:
    it = subject(family)
    groups = groups_of(it)
    policy = GroupForward(it.model(), it.facts)
    reference = Reference(policy)
    before = logp(policy, groups)
    train_a_step(policy, groups)
    assert (logp(policy, groups) - before).abs().max() > 0.01
    assert torch.equal(reference(groups).logp, before)
    assert not any(weight.requires_grad for weight in reference.forward.outer.parameters())
    assert all(weight.requires_grad for weight in policy.outer.parameters())
    assert reference.forward.layout == policy.layout


def test_another_model_may_be_the_reference(subject: Subjects) -> None:
    """Even one whose layers cannot share."""
    it, other = subject("qwen3_vl"), subject("qwen3_5")
    policy = GroupForward(it.model(), it.facts)
    groups = groups_of(it)
    reference = Reference(policy, other.model(attn_implementation="eager"))
    assert (policy.layout, reference.forward.layout) == ("shared", "rows")
    expected = logp(GroupForward(other.model(attn_implementation="eager"), other.facts), groups)
    assert torch.equal(reference(groups).logp, expected)


@pytest.mark.parametrize("kind", ["copy", "adapter"])
def test_no_gradient_no_dropout_and_every_mode_restored(subject: Subjects, kind: str) -> None:
    it = subject("qwen2_5_vl")
    groups = groups_of(it)
    model = adapted(it, lora_dropout=0.9) if kind == "adapter" else it.model()
    policy = GroupForward(model, it.facts)
    reference = Reference(policy)
    model.train()
    policy.model.model.visual.eval()
    before = {name: (module.training) for name, module in model.named_modules()}
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    modes: list[bool] = []
    reference.forward.model.get_decoder().register_forward_hook(lambda module, *_: modes.append(module.training))
    one, other = reference(groups), reference(groups)
    assert torch.equal(one.logp, other.logp)
    assert not one.logp.requires_grad
    assert modes == [False, False]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    hook = reference.forward.model.get_decoder().register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="say"):
        reference(groups)
    hook.remove()
    assert {name: module.training for name, module in model.named_modules()} == before
    if kind == "adapter":
        assert (
            logp(GroupForward(copy.deepcopy(model).eval(), it.facts), groups) - one.logp
        ).abs().max() > 0.01  # on again
