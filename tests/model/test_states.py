"""Layers with a state in a packed row, each against itself on one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.glm5_next import modeling_glm5_next as glm5_next
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite
from transformers.models.kimi_linear import modeling_kimi_linear as kimi_linear
from transformers.models.lfm2 import modeling_lfm2 as lfm2
from transformers.models.lfm2_moe import modeling_lfm2_moe as lfm2_moe
from transformers.models.nemotron_h import modeling_nemotron_h as nemotron_h
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as qwen3_5_moe
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from boresight.model.attention import BranchTable
from boresight.model.states import CarriedStates, run_packed
from boresight.state_layers import STATE_LAYERS
from tests.model.rows import row_of

WIDTH = 16
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "conv_kernel": 4,
    "ssm_state_size": 8,
    "n_groups": 2,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "chunk_size": 4,
}
GRANITE = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 4}
RECURRENT, CONVOLUTION = {"layer_types": ["linear_attention"]}, {"layer_types": ["conv"]}

LAYERS: dict[type[nn.Module], tuple[Any, dict[str, Any]]] = {
    qwen3_5.Qwen3_5GatedDeltaNet: (transformers.Qwen3_5TextConfig, RECURRENT | DELTA),
    qwen3_5_moe.Qwen3_5MoeGatedDeltaNet: (transformers.Qwen3_5MoeTextConfig, RECURRENT | DELTA),
    qwen3_next.Qwen3NextGatedDeltaNet: (transformers.Qwen3NextConfig, RECURRENT | DELTA),
    glm5_next.Glm5NextTextLinearAttention: (
        glm5_next.Glm5NextTextConfig,
        RECURRENT | {"linear_num_heads": 2, "linear_head_dim": 8},
    ),
    kimi_linear.KimiLinearDeltaAttention: (
        kimi_linear.KimiLinearConfig,
        RECURRENT | {"linear_num_heads": 2, "linear_head_dim": 8},
    ),
    nemotron_h.NemotronHMamba2Mixer: (transformers.NemotronHConfig, RECURRENT | MAMBA),
    granite.GraniteMoeHybridMambaLayer: (transformers.GraniteMoeHybridConfig, RECURRENT | GRANITE),
    lfm2.Lfm2ShortConv: (transformers.Lfm2Config, CONVOLUTION | {"conv_bias": True}),
    lfm2_moe.Lfm2MoeShortConv: (transformers.Lfm2MoeConfig, CONVOLUTION),
}
"""Layer class → its configuration class and what makes it tiny."""


def test_every_listed_layer_is_tested() -> None:
    assert {layer.__name__ for layer in LAYERS} == STATE_LAYERS


def built(layer: type[nn.Module]) -> Any:
    config_class, options = LAYERS[layer]
    config = config_class(hidden_size=WIDTH, num_hidden_layers=1, **options)
    torch.manual_seed(0)
    built = layer(config, 0)
    for weight in built.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0.0, weight[0].numel() ** -0.5)
        else:
            nn.init.uniform_(weight, 0.5, 1.5)
    return built.eval()


def check(layer: Any, shapes: list[tuple[int, list[int]]]) -> None:
    row = row_of(shapes)
    hidden = torch.randn(1, len(row.ids), WIDTH, requires_grad=True)
    found = run_packed(layer, layer.forward, {"hidden_states": hidden}, BranchTable.of(row))[0]
    expected = torch.zeros_like(found)
    for span in row.spans:
        prompt = torch.arange(span.start, span.start + span.prompt)
        expected = expected.index_copy(0, prompt, layer(hidden_states=hidden[:, prompt])[0])
        place = span.start + span.prompt
        for length in span.branches:
            own = torch.arange(place, place + length)
            whole = layer(hidden_states=hidden[:, torch.cat([prompt, own])])[0]
            expected = expected.index_copy(0, own, whole[span.prompt :])
            place += length
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.detach().abs().max())), rtol=0)
    weight = torch.randn_like(expected)
    wanted = [hidden, *layer.parameters()]
    ours, theirs = (torch.autograd.grad((out * weight).sum(), wanted) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5 * float(other.norm()), rtol=0)


def by_name(layer: type[nn.Module]) -> str:
    return layer.__name__


@pytest.mark.parametrize("layer", LAYERS, ids=by_name)
def test_a_packed_row_equals_its_sequences_one_by_one(layer: type[nn.Module]) -> None:
    it = built(layer)
    for shapes in ([(5, [3, 1])], [(1, [1]), (70, [4, 90, 2]), (3, [5, 5]), (9, [2])], [(2, [0, 3])], [(4, [0])]):
        check(it, shapes)


SHAPES = st.lists(
    st.tuples(st.integers(1, 80), st.lists(st.integers(0, 70), min_size=1, max_size=4)), min_size=1, max_size=3
)


@settings(max_examples=15, deadline=None)
@given(shapes=SHAPES)
def test_any_shapes(shapes: list[tuple[int, list[int]]]) -> None:
    check(built(lfm2.Lfm2ShortConv), shapes)


@pytest.mark.soak
@settings(max_examples=300, deadline=None)
@given(shapes=SHAPES, layer=st.sampled_from(list(LAYERS)))
def test_any_shapes_of_any_layer(shapes: list[tuple[int, list[int]]], layer: type[nn.Module]) -> None:
    check(built(layer), shapes)


# ---- Negative controls: what is carried, and where to -------------------------------------------------------------------------------

EXPANDED = CarriedStates.expanded


def nothing(prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
    return CarriedStates()


def without_window(prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
    states = EXPANDED(prompts, sources)
    states.conv_states = {index: torch.zeros_like(state) for index, state in states.conv_states.items()}  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return states


def without_recurrence(prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
    states = EXPANDED(prompts, sources)
    states.recurrent_states = {index: torch.zeros_like(state) for index, state in states.recurrent_states.items()}  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    return states


def swapped(prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
    return EXPANDED(prompts, int(sources.max()) - sources)


def without_gradient(prompts: Sequence[CarriedStates], sources: Tensor) -> CarriedStates:
    with torch.no_grad():
        return EXPANDED(prompts, sources)


DEFECTS = {
    "state not expanded": nothing,
    "convolution's window dropped": without_window,
    "recurrent state dropped": without_recurrence,
    "states swapped between groups": swapped,
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("layer", LAYERS, ids=by_name)
def test_without_each_part_of_the_state_a_layer_differs(
    layer: type[nn.Module], defect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if defect == "recurrent state dropped" and layer in (lfm2.Lfm2ShortConv, lfm2_moe.Lfm2MoeShortConv):
        pytest.skip("a convolution has no recurrent state")
    monkeypatch.setattr(CarriedStates, "expanded", DEFECTS[defect])
    with pytest.raises(AssertionError, match="Mismatched"):
        check(built(layer), [(12, [5, 3]), (11, [4, 4])])


@pytest.mark.parametrize("layer", LAYERS, ids=by_name)
def test_without_the_gradient_through_the_state_gradients_differ(
    layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CarriedStates, "expanded", without_gradient)
    with pytest.raises(AssertionError, match="Mismatched"):
        check(built(layer), [(12, [5, 3])])
