"""Models with layers that have a state, in the shared layout, against plain transformers, one row per completion.

test_forward.py compares them as it does all families; here they have more layers, more cases, and controls of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from boresight.errors import ModelError
from boresight.families import family_of
from boresight.model import layouts, states
from boresight.model.forward import GroupForward
from boresight.model.states import CarriedStates
from boresight.modules import checkpoint_activations
from boresight.state_layers import state_layers
from boresight.types import Group
from tests.model.conftest import Subject, Subjects
from tests.model.oracle import Result, oracle, ours, worst_gradient, worst_logp
from tests.model.test_states import DEFECTS, without_gradient

FAMILIES = ("qwen3_5", "qwen3_5_moe", "lfm2_vl")
BOUND = 1e-5
CASES: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "K=1": ((1, (9,)),),
    "K=2": ((2, (7, 3)),),
    "K=8, and text only": ((0, (6, 1, 9, 4, 12, 2, 5, 3)), (1, (2,))),
    "two groups": ((1, (4, 6)), (1, (5, 2, 8))),
    "all at once": ((2, (3, 70)), (0, (1, 1)), (1, (4,)), (1, (6, 1, 9, 4, 80, 2, 5, 3))),
}
"""Images of each group of one call, and the lengths of its completions."""


def hybrid(subject: Subjects, family: str) -> Subject:
    """A state before attention and one after it."""
    return subject(family, num_layers=3)


def groups_of(it: Subject, case: str) -> list[Group]:
    return [
        it.group(it.prompt(images, seed=place), lengths, seed=place)
        for place, (images, lengths) in enumerate(CASES[case])
    ]


@pytest.fixture(scope="module")
def expected(subject: Subjects) -> Callable[[str, str], Result]:
    """What plain transformers says, computed once."""
    known: dict[tuple[str, str], Result] = {}

    def find(family: str, case: str) -> Result:
        if (family, case) not in known:
            it = hybrid(subject, family)
            known[family, case] = oracle(it, it.model(), groups_of(it, case))
        return known[family, case]

    return find


Expected = Callable[[str, str], Result]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_equals_plain_rows(
    subject: Subjects, expected: Expected, family: str, case: str, checkpointing: bool
) -> None:
    it = hybrid(subject, family)
    model = it.model()
    assert len(state_layers(model)) == 2
    if checkpointing:
        checkpoint_activations(model.train(), {"use_reentrant": False})
    run = GroupForward(model, it.facts)
    assert run.layout == "shared"
    found = ours(run, groups_of(it, case))
    assert worst_logp(found, expected(family, case)) <= BOUND
    assert worst_gradient(found, expected(family, case)) <= BOUND
    prompts = sum(len(group.prompt.ids) for group in groups_of(it, case))
    assert run.counts["prompt_tokens"] == prompts


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_each_part_of_the_state_the_difference_is_wide(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch, family: str, defect: str
) -> None:
    if (family, defect) == ("lfm2_vl", "recurrent state dropped"):
        pytest.skip("a convolution has no recurrent state")
    it = hybrid(subject, family)
    monkeypatch.setattr(CarriedStates, "expanded", DEFECTS[defect])
    found = ours(GroupForward(it.model(), it.facts), groups_of(it, "two groups"))
    assert worst_logp(found, expected(family, "two groups")) > 1000 * BOUND
    assert worst_gradient(found, expected(family, "two groups")) > 1000 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_through_the_state(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """With the states detached, log-probabilities are right and gradients are not."""
    it = hybrid(subject, family)
    monkeypatch.setattr(CarriedStates, "expanded", without_gradient)
    found = ours(GroupForward(it.model(), it.facts), groups_of(it, "two groups"))
    assert worst_logp(found, expected(family, "two groups")) <= BOUND
    assert worst_gradient(found, expected(family, "two groups")) > 1000 * BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_alone_would_be_wide_of_the_mark(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The attention is right, and the layers with a state read the row from end to end."""
    it = hybrid(subject, family)
    monkeypatch.setattr(states, "install", lambda model: 0)
    found = ours(GroupForward(it.model(), it.facts), groups_of(it, "two groups"))
    assert worst_logp(found, expected(family, "two groups")) > 1000 * BOUND


# ---- The installed model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_installed_model_is_the_same_model(subject: Subjects, family: str) -> None:
    """It answers plain calls and generates as before, also after a shared pass, and copies share nothing with it."""
    it = hybrid(subject, family)
    model, inputs, groups = it.model(), it.processed(it.prompt(1)), groups_of(it, "two groups")

    def answers(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return model(**inputs).logits, model.generate(**inputs, max_new_tokens=6, do_sample=False)  # pyright: ignore[reportCallIssue]

    before, classes = answers(model), {type(module) for module in model.modules()}
    with torch.no_grad():
        wanted = GroupForward(model, it.facts)(groups).logp
        assert torch.equal(GroupForward(model, it.facts)(groups).logp, wanted)
        twin = copy.deepcopy(model)
        for weight in model.parameters():
            weight.zero_()
        # Its weights lie elsewhere in memory, so that products may be summed in another order.
        torch.testing.assert_close(GroupForward(twin, it.facts)(groups).logp, wanted, atol=5e-6, rtol=0)
        assert GroupForward(model, it.facts)(groups).logp.unique().numel() <= 2
    logits, completion = answers(twin)
    torch.testing.assert_close(logits, before[0], atol=5e-6, rtol=0)
    assert torch.equal(completion, before[1])
    assert {type(module) for module in twin.modules()} == classes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_does_not_get_the_table_is_found_out(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    it = hybrid(subject, family)
    run = GroupForward(it.model(), it.facts)
    run.model.get_decoder().layers[2]._forward_pre_hooks.clear()
    with pytest.raises(ModelError, match="does not pass keyword arguments"):
        run(groups_of(it, "K=2"))


def test_a_state_that_is_not_known_says_so(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    it = hybrid(subject, "qwen3_5")
    model = it.model()
    monkeypatch.setattr("boresight.state_layers.STATE_LAYERS", frozenset())
    reason = "boresight does not know the state of its layers of type linear_attention"
    assert layouts.why_not_shared(model) == reason
    model.get_decoder().config.layer_types = None
    assert layouts.why_not_shared(model) == "it has a recurrent state that boresight does not know"


@pytest.mark.parametrize(
    ("family", "modules"),
    [("qwen3_5", ["in_proj_qkv", "in_proj_a", "out_proj", "q_proj"]), ("lfm2_vl", ["in_proj", "out_proj", "q_proj"])],
)
def test_adapters_in_layers_with_a_state(subject: Subjects, family: str, modules: list[str]) -> None:
    it = hybrid(subject, family)
    torch.manual_seed(0)
    adapter = LoraConfig(
        r=4, target_modules=modules, exclude_modules=family_of(family).not_language, init_lora_weights=False
    )
    model: Any = get_peft_model(it.model(), adapter)
    groups = groups_of(it, "two groups")
    wanted, run = oracle(it, model, groups), GroupForward(model, it.facts)
    assert run.layout == "shared"
    found = ours(run, groups)
    assert sum("linear_attn" in name or ".conv." in name for name in wanted[1]) >= 8
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= BOUND
