"""The load-balancing loss of experts: that of transformers' own outputs on one row for each completion, whichever layout runs."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from boresight.errors import ModelError
from boresight.model.forward import GroupForward
from boresight.model.routers import shared_counts
from boresight.own_forward import completion_tensors
from boresight.types import Group
from tests.model.conftest import Subject, Subjects

FAMILIES = ("qwen3_vl_moe", "qwen3_5_moe")


def groups_of(it: Subject) -> list[Group]:
    return [
        it.group(it.prompt(images, seed=place), lengths, seed=place)
        for place, (images, lengths) in enumerate(((1, (5, 9, 2)), (0, (4,)), (2, (3, 7))))
    ]


def oracle(it: Subject, model: Any, groups: list[Group]) -> Tensor:
    """transformers' function on the router logits that its own forward returns for each row."""
    rows = []
    for group in groups:
        for completion in group.completions:
            tensors, ids = completion_tensors(model, group.prompt, completion)
            del ids
            whole = {**tensors, "input_ids": torch.cat([group.prompt.ids, completion.ids])[None]}
            length = whole["input_ids"].shape[1]
            whole["attention_mask"] = torch.ones(1, length, dtype=torch.long)
            if "mm_token_type_ids" in whole:
                types = whole["mm_token_type_ids"]
                whole["mm_token_type_ids"] = torch.nn.functional.pad(types, (0, length - types.shape[1]))
            rows.append(model(**whole, output_router_logits=True, use_cache=False).router_logits)
    config = model.config.text_config
    layers = tuple(torch.cat([row[layer] for row in rows]) for layer in range(len(rows[0])))
    return sys.modules[type(model).__module__].load_balancing_loss_func(
        layers, config.num_experts, config.num_experts_per_tok
    )


def gate_gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if name.endswith("mlp.gate.weight")}


@pytest.mark.parametrize("layout", ["shared", "rows", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_that_of_one_row_for_each_completion(subject: Subjects, family: str, layout: str) -> None:
    it = subject(family)
    groups = groups_of(it)
    model = it.model()
    expected = oracle(it, model, groups)
    wanted = gate_gradients(model, expected)
    forward = GroupForward(model, it.facts, layout=layout, router_aux_loss_coef=1.0)
    forward(groups)
    found = forward.take_balance()
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, gradient in gate_gradients(model, found).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-3)
        assert gradient.abs().max() > 1e-4
    assert forward.take_balance() is None  # it was taken


def test_a_shared_prompt_counts_once_for_each_completion(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject("qwen3_vl_moe")
    groups = groups_of(it)
    counts = shared_counts(groups)
    assert counts.sum() == sum(len(group.prompt.ids) + len(each.ids) for group in groups for each in group.completions)
    model = it.model()
    forward = GroupForward(model, it.facts, layout="shared", router_aux_loss_coef=1.0)
    # The negative control: prompts that count once are another loss.
    monkeypatch.setattr("boresight.model.layouts.shared_counts", lambda groups: torch.ones_like(shared_counts(groups)))
    forward(groups)
    assert (forward.take_balance() - oracle(it, model, groups)).abs() > 1e-4  # pyright: ignore[reportOperatorIssue]


def test_passes_without_gradients_and_models_that_do_not_ask_have_none(subject: Subjects) -> None:
    it = subject("qwen3_vl_moe")
    groups = groups_of(it)
    forward = GroupForward(it.model(), it.facts, layout="shared", router_aux_loss_coef=None)
    assert forward.routers is not None
    assert forward.routers.weight == it.model().config.text_config.router_aux_loss_coef
    with torch.no_grad():
        forward(groups)
    assert forward.take_balance() is None
    forward = GroupForward(it.model(), it.facts, layout="shared")
    forward(groups)
    assert forward.routers is None
    assert forward.take_balance() is None


def test_a_model_without_experts_that_asks_is_refused(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    assert GroupForward(it.model(), it.facts, layout="shared", router_aux_loss_coef=None).routers is None
    with pytest.raises(ModelError, match=r"router_aux_loss_coef=0.1, but Qwen2_5_VL\w+ has no load-balancing loss"):
        GroupForward(it.model(), it.facts, layout="shared", router_aux_loss_coef=0.1)
