from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForImageTextToText
from transformers.integrations.sdpa_attention import repeat_kv

from boresight.errors import ModelError
from boresight.model.attention import BranchTable, install, packed_attention, padded_attention
from boresight.model.forward import GroupForward
from boresight.model.packing import PackedRow
from tests.model.conftest import Subjects
from tests.model.rows import row_of


def visible(row: PackedRow, window: int | None, blocks: bool) -> Tensor:
    """[L, L] who sees whom, from the definition: my own past in the prompt and in my branch, and all of my image."""
    length = len(row.ids)
    home = torch.zeros(
        length, 2, dtype=torch.long
    )  # group, branch (−1: the prompt, or a lone completion, which goes straight on)
    step = torch.zeros(length, dtype=torch.long)  # place in the sequence that one completion would be
    for number, span in enumerate(row.spans):
        place = span.start
        for branch, size, first in [(-1, span.prompt, 0), *((b, n, span.prompt) for b, n in enumerate(span.branches))]:
            home[place : place + size] = torch.tensor([number, -1 if len(span.branches) == 1 else branch])
            step[place : place + size] = first + torch.arange(size)
            place += size
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            same = home[query, 0] == home[key, 0] and home[key, 1] in (-1, home[query, 1])
            back = step[query] - step[key]
            ahead = blocks and bool((row.token_types[min(query, key) : max(query, key) + 1] == 1).all())
            mask[query, key] = same and (back >= 0 or ahead) and (window is None or back < window)
    return mask


SHAPES = {
    "shapes": st.lists(
        st.tuples(st.integers(1, 7), st.lists(st.integers(0, 4), min_size=1, max_size=4)), min_size=1, max_size=3
    ),
    "window": st.sampled_from([None, 1, 3]),
    "blocks": st.booleans(),
    "attention": st.sampled_from([packed_attention, padded_attention]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.soak
@settings(max_examples=5000, deadline=None)
@given(**SHAPES)
def test_many_more_shapes(**case: Any) -> None:
    check_against_one_dense_mask(**case)


@settings(max_examples=80, deadline=None)
@given(**SHAPES)
def test_pieces_and_two_calls_equal_one_dense_mask(**case: Any) -> None:
    check_against_one_dense_mask(**case)


def check_against_one_dense_mask(
    shapes: list[tuple[int, list[int]]], window: int | None, blocks: bool, attention: Callable[..., Tensor], seed: int
) -> None:
    """Values and gradients, whatever the shapes: groups of one and of several, grouped heads, windows, images in prompts."""
    torch.manual_seed(seed)
    row = row_of(shapes)
    for span in row.spans:
        seen = span.prompt + (span.branches[0] if len(span.branches) == 1 else 0)
        row.token_types[span.start : span.start + seen] = torch.randint(2, (seen,))
        row.token_types[span.start] = 0  # two prompts' images never touch
    length = len(row.ids)
    query, key, value = (torch.randn(1, heads, length, 5, requires_grad=True) for heads in (4, 2, 2))
    table = BranchTable.of(row, blocks="image" if blocks else None)
    found = attention(query, key, value, table, 0.3, window)
    dense = scaled_dot_product_attention(
        query, repeat_kv(key, 2), repeat_kv(value, 2), visible(row, window, blocks), scale=0.3
    )
    expected = dense.transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_table_by_hand() -> None:
    """Two groups: three tokens with branches of one and two, two tokens with a lone completion of one."""
    table = BranchTable.of(row_of([(3, [1, 2]), (2, [1])]))
    assert table.prompts.tolist() == [[0, 1, 2], [6, 7, 8]]
    assert table.branches.tolist() == [[3, 0], [4, 5]]
    assert table.group.tolist() == [0, 0]
    assert table.prompt_lengths.tolist() == [3, 3]
    assert table.restore.tolist() == [0, 1, 2, 6, 8, 9, 3, 4, 5]
    prompts, branches = table.masks(None)
    assert prompts is None
    assert branches.shape == (2, 1, 2, 5)
    assert branches[1, 0].tolist() == [[True, True, True, True, False], [True, True, True, True, True]]
    narrow = table.masks(2)[1][1, 0]
    assert narrow.tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


def test_masks_are_built_once_for_each_kind_of_layer() -> None:
    table = BranchTable.of(row_of([(3, [1, 2])]))
    assert table.masks(2)[1] is table.masks(2)[1]
    assert table.masks(2)[1] is not table.masks(None)[1]
    assert table.to(torch.device("cpu")).prompts.tolist() == table.prompts.tolist()


def plain(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "gemma3"])
def test_an_installed_model_is_the_same_model(subject: Subjects, family: str, tmp_path: Path) -> None:
    """It answers plain calls and generates as before, saves and copies, and its folder knows nothing of us."""
    it = subject(family)
    model = it.model()
    inputs = it.processed(it.prompt(1))
    before, generated = plain(model, inputs), model.generate(**inputs, max_new_tokens=6, do_sample=False)
    classes = {type(module) for module in model.modules()}
    install(model)
    install(model)
    assert model.get_decoder().config._attn_implementation == "branch_sdpa"
    assert {type(module) for module in model.modules()} == classes
    assert torch.equal(plain(model, inputs), before)
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), generated)

    it.model().save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (tmp_path / "plain" / "config.json").read_text()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert loaded.get_decoder().config._attn_implementation == "sdpa"
    assert torch.equal(plain(loaded, inputs), before)

    group = it.group(it.prompt(1), (4, 2))
    with torch.no_grad():
        expected = GroupForward(model, it.facts)([group]).logp
        assert torch.equal(GroupForward(copy.deepcopy(model), it.facts)([group]).logp, expected)
        adapted: Any = get_peft_model(
            copy.deepcopy(model), LoraConfig(target_modules=["q_proj"])
        )  # starts as the identity
        assert torch.equal(GroupForward(adapted, it.facts, layout="shared")([group]).logp, expected)
    adapted.save_pretrained(tmp_path / "adapter")
    assert "branch" not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def test_eager_attention_is_refused(subject: Subjects) -> None:
    with pytest.raises(ModelError, match="attn_implementation='sdpa'"):
        install(subject("llava").model(attn_implementation="eager"))


def test_a_model_that_drops_the_table_is_found_out(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject("llava")
    model = it.model()
    run = GroupForward(model, it.facts, layout="shared")
    inner = model.model.language_model.forward
    monkeypatch.setattr(
        model.model.language_model, "forward", lambda *a, branches=None, **k: inner(*a, **k | {"attention_mask": None})
    )
    with pytest.raises(ModelError, match="keyword arguments"):
        run([it.group(it.prompt(1), (2, 3))])
