"""Both layouts against plain transformers, one row per completion, for every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from boresight.data.schema import read_row
from boresight.errors import ConfigError, ModelError
from boresight.model import attention, layouts
from boresight.model.attention import BranchTable
from boresight.model.forward import GroupForward
from boresight.model.packing import PackedRow, pack
from boresight.modules import checkpoint_activations
from boresight.types import Group
from tests.model.conftest import Subject, Subjects, noise
from tests.model.oracle import (
    Result,
    gradients,
    oracle,
    ours,
    picked,
    plain_logits,
    plain_rows,
    weights_of,
    worst_gradient,
    worst_logp,
)
from tests.tiny import FAMILIES

SHARING = sorted({*FAMILIES, "gemma4", "gemma4_kv", "glm4v", "idefics2", "mistral3", "qwen3_vl_moe"})
"""Families whose layouts are compared here, every group and gradient."""
M_ROPE = ("glm4v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe")
BOUND = 1e-5
GRADIENT_BOUND = 2e-5
"""float32 rounding: 1.3e-5 at most on a processor without AVX-512 (gemma4_kv), below 1e-5 with it."""
CASES: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "K=1": ((1, (9,)),),
    "K=2": ((2, (7, 3)),),
    "mixed": ((0, (4, 6)), (5, (3,)), (1, (6, 1, 9, 4, 12, 2, 5, 3)), (2, (2, 7))),
}
"""Images of each group of one call, and the lengths of its completions."""


def groups_of(it: Subject, case: str) -> list[Group]:
    groups = [
        it.group(it.prompt(images, seed=place), lengths, seed=place)
        for place, (images, lengths) in enumerate(CASES[case])
    ]
    # Not every token counts: neither the first nor one in the middle of the first completion does.
    first = groups[0].completions[0]
    mask = first.mask.clone()
    mask[[0, 2]] = False
    return [replace(groups[0], completions=(replace(first, mask=mask), *groups[0].completions[1:])), *groups[1:]]


@pytest.fixture(scope="module")
def expected(subject: Subjects) -> Callable[[str, str], Result]:
    """What plain transformers says, computed once."""
    known: dict[tuple[str, str], Result] = {}

    def find(family: str, case: str) -> Result:
        if (family, case) not in known:
            it = subject(family)
            known[family, case] = oracle(it, it.model(), groups_of(it, case))
        return known[family, case]

    return find


Expected = Callable[[str, str], Result]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", SHARING)
def test_shared_equals_plain_rows(subject: Subjects, expected: Expected, family: str, case: str) -> None:
    it = subject(family)
    found = ours(GroupForward(it.model(), it.facts, layout="shared"), groups_of(it, case))
    assert worst_logp(found, expected(family, case)) <= BOUND
    assert worst_gradient(found, expected(family, case)) <= GRADIENT_BOUND


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", SHARING)
def test_rows_equals_plain_rows(subject: Subjects, expected: Expected, family: str, case: str) -> None:
    it = subject(family)
    found = ours(GroupForward(it.model(), it.facts, layout="rows"), groups_of(it, case))
    assert worst_logp(found, expected(family, case)) <= BOUND
    assert worst_gradient(found, expected(family, case)) <= BOUND


@pytest.mark.parametrize("family", SHARING)
def test_gradient_checkpointing_changes_nothing(subject: Subjects, expected: Expected, family: str) -> None:
    it = subject(family)
    model = it.model().train()
    checkpoint_activations(model, {"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    found = ours(GroupForward(model, it.facts), groups_of(it, "mixed"))
    assert worst_logp(found, expected(family, "mixed")) <= BOUND
    assert worst_gradient(found, expected(family, "mixed")) <= BOUND


# ---- Negative controls: what each part of the layout is there for ------------------------------------------------------------------


def moved_branches(start_of: Callable[[int, int, int], int]) -> Callable[..., PackedRow]:
    """A `pack` whose branches start elsewhere: at `start_of(largest position, prompt's length, tokens of earlier branches)`."""

    def packed(base: nn.Module, groups: Sequence[Group]) -> PackedRow:
        row = pack(base, groups)
        positions = row.positions.clone()
        for span in row.spans:
            largest = int(positions[..., span.start : span.start + span.prompt].max())
            place = first = span.start + span.prompt
            for length in span.branches:
                positions[..., place : place + length] = start_of(largest, span.prompt, place - first) + torch.arange(
                    length
                )
                place += length
        return replace(row, positions=positions)

    return packed


def causal_over_the_row(
    query: Tensor, key: Tensor, value: Tensor, table: BranchTable, scale: float, window: int | None
) -> Tensor:
    key, value = (repeat_kv(states, query.shape[1] // key.shape[1]) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale).transpose(1, 2)


def without_window(*arguments: Any) -> Tensor:
    query, key, value, table, scale, _ = arguments
    return PACKED_ATTENTION(query, key, value, table, scale, None)


def no_blocks(token_types: Tensor, prompts: list[Tensor]) -> Tensor:
    return torch.full_like(IMAGE_BLOCKS(token_types, prompts), -1)


PACKED_ATTENTION, IMAGE_BLOCKS = attention.packed_attention, attention._image_blocks
BREAKS: dict[str, tuple[Any, str, Any]] = {
    "positions not restarted": (layouts, "pack", moved_branches(lambda largest, prompt, before: largest + 1 + before)),
    "positions from the prompt's length": (layouts, "pack", moved_branches(lambda largest, prompt, before: prompt)),
    "completions see each other": (attention, "packed_attention", causal_over_the_row),
    "image blocks missing": (attention, "_image_blocks", no_blocks),
    "sliding window ignored": (attention, "packed_attention", without_window),
}
BROKEN = [
    *((family, "positions not restarted") for family in SHARING),
    *((family, "completions see each other") for family in SHARING),
    *((family, "positions from the prompt's length") for family in M_ROPE),
    ("gemma3", "image blocks missing"),
    ("gemma3", "sliding window ignored"),
]


@pytest.mark.parametrize(("family", "defect"), BROKEN)
def test_without_each_part_the_difference_is_wide(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch, family: str, defect: str
) -> None:
    it = subject(family)
    monkeypatch.setattr(*BREAKS[defect])
    found = ours(GroupForward(it.model(), it.facts, layout="shared"), groups_of(it, "K=2"))
    assert worst_logp(found, expected(family, "K=2")) > 1000 * BOUND
    assert worst_gradient(found, expected(family, "K=2")) > 1000 * BOUND


# ---- Images ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_equal_size_are_never_confused(subject: Subjects, family: str) -> None:
    it = subject(family)
    run = GroupForward(it.model(), it.facts)
    ours, theirs = (it.group(it.prompt_of([noise((64, 64), seed)]), (5, 2)) for seed in (1, 2))
    assert torch.equal(ours.prompt.ids, theirs.prompt.ids)
    with torch.no_grad():
        together = run([ours, theirs, ours]).logp
        alone = [run([group]).logp for group in (ours, theirs)]
    torch.testing.assert_close(together, torch.cat([*alone, alone[0]]), atol=BOUND, rtol=0)
    # The same words after another image: every token is likelier or less likely.
    assert (alone[0] - alone[1])[ours_mask(ours)].abs().min() > 1e-4
    assert (alone[0] - alone[1]).abs().max() > 1e-2


def ours_mask(group: Group) -> Tensor:
    return nn.utils.rnn.pad_sequence([completion.mask for completion in group.completions], True)


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lone_completion_may_hold_images(subject: Subjects, family: str, layout: str) -> None:
    """SFT on a conversation whose second turn brings an image of its own, in one row with a pair."""
    it = subject(family)
    images = [noise((64, 96), 1), noise((100, 50), 2)]
    turns = [
        ("user", [{"type": "image"}, {"type": "text", "text": "what color is the shape?"}]),
        ("assistant", [{"type": "text", "text": "a red circle"}]),
        ("user", [{"type": "text", "text": "and"}, {"type": "image"}, {"type": "text", "text": "here?"}]),
        ("assistant", [{"type": "text", "text": "a blue one"}]),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = it.encoder.demonstration(read_row({"messages": messages, "images": images}, 0), assistant_only=True)
    completion = whole.completions[0]
    assert completion.token_types is not None and (completion.token_types == 1).any() and not completion.mask.all()
    pair = it.group(it.prompt(2), (3, 5))
    model = it.model()
    found = ours(GroupForward(model, it.facts, layout=layout), [whole, pair])

    filled = iter(images)
    for message in messages:
        message["content"] = [
            {**part, "image": next(filled)} if part["type"] == "image" else part for part in message["content"]
        ]
    inputs = it.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"][0], torch.cat([whole.prompt.ids, completion.ids]))
    logp = picked(plain_logits(model, inputs, completion.ids), completion.ids)
    weights = weights_of([whole, pair])
    (logp * weights[0]).sum().backward()
    lone = [logp.detach() * completion.mask]
    for (row, ids), weight in zip(plain_rows(it, [pair]), weights[1:], strict=True):
        logp = picked(plain_logits(model, row, ids), ids)
        (logp * weight).sum().backward()
        lone.append(logp.detach())
    wanted = lone, gradients(model)
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= BOUND


def test_an_image_wider_than_the_sliding_window(subject: Subjects) -> None:
    """Gemma 3: 36 tokens of an image under a window of 16, which bounds what lies behind but not what lies ahead."""
    it = subject("gemma3", tile_size=96)
    model, groups = it.model(), groups_of(it, "mixed")
    assert model.config.text_config.sliding_window == 16
    found, wanted = ours(GroupForward(model, it.facts, layout="shared"), groups), oracle(it, model, groups)
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= BOUND


# ---- Precision, adapters, heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_bounded(subject: Subjects, family: str) -> None:
    """bf16 weights against the same weights in float32: 0.1 nats and, in the median parameter's gradient, 5 %; in both layouts alike."""
    it = subject(family)
    groups = groups_of(it, "K=2")
    wanted = oracle(it, it.model(dtype=torch.bfloat16).float(), groups)
    for layout in ("shared", "rows"):
        found = ours(GroupForward(it.model(dtype=torch.bfloat16), it.facts, layout=layout), groups)
        assert worst_logp(found, wanted) <= 0.1
        assert median_gradient(found, wanted) <= 0.05


def median_gradient(one: Result, other: Result) -> float:
    far = sorted(
        (one[1][name].float() - value).norm().item() / (value.norm().item() or 1.0) for name, value in other[1].items()
    )
    return far[len(far) // 2]


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize(
    ("family", "tied"), [("qwen2_5_vl", True), ("qwen2_5_vl", False), ("smolvlm", False), ("gemma3", True)]
)
def test_adapters_on_attention_and_head(subject: Subjects, family: str, tied: bool, layout: str) -> None:
    it = subject(family, tie_word_embeddings=tied)
    torch.manual_seed(0)
    adapter = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "lm_head"], init_lora_weights=False, ensure_weight_tying=False
    )
    model: Any = get_peft_model(it.model(), adapter)
    head = model.get_base_model().get_output_embeddings()
    assert head.lora_A.default.weight.requires_grad and not head.weight.requires_grad
    groups = groups_of(it, "K=2")
    wanted = oracle(it, model, groups)
    found = ours(GroupForward(model, it.facts, layout=layout), groups)
    assert any("lm_head" in name for name in wanted[1]) and len(wanted[1]) < 20
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= BOUND
    with model.disable_adapter():
        off = GroupForward(model, it.facts, layout=layout)(groups).logp
    assert (off - nn.utils.rnn.pad_sequence(found[0], True)).abs().max() > 0.01


@pytest.mark.parametrize(("family", "tied"), [("qwen2_5_vl", False), ("smolvlm", True)])
def test_heads_tied_or_not(subject: Subjects, family: str, tied: bool) -> None:
    it = subject(family, tie_word_embeddings=tied)
    model, groups = it.model(), groups_of(it, "K=2")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    found, wanted = ours(GroupForward(model, it.facts, layout="shared"), groups), oracle(it, model, groups)
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= BOUND


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_sampled_completions_are_scored_as_they_were_drawn(subject: Subjects, layout: str) -> None:
    """Under the sampler's temperature, and without the ids that it may not draw."""
    it = subject("qwen2_5_vl")
    model, groups = it.model(), groups_of(it, "K=2")
    with torch.no_grad():
        stats = GroupForward(model, it.facts, layout=layout)(groups, temperature=0.7, ban_modalities=True, entropy=True)
        for place, (inputs, ids) in enumerate(plain_rows(it, groups)):
            logits = plain_logits(model, inputs, ids) / 0.7
            logits[:, list(it.facts.modality_ids)] = -torch.inf
            mask = stats.mask[place, : len(ids)]
            wanted = torch.distributions.Categorical(logits=logits)
            for ours, theirs in ((stats.logp, wanted.log_prob(ids)), (stats.entropy, wanted.entropy())):
                torch.testing.assert_close(ours[place, : len(ids)], theirs * mask, atol=BOUND, rtol=0)  # pyright: ignore[reportOptionalSubscript]
            assert torch.equal(stats.greedy[place, : len(ids)], (logits.argmax(-1) == ids) & mask)  # pyright: ignore[reportOptionalSubscript]


# ---- What is counted, chosen and refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_counts(subject: Subjects, layout: str) -> None:
    it = subject("qwen2_5_vl")
    groups = groups_of(it, "mixed")
    run = GroupForward(it.model(), it.facts, layout=layout)
    run(groups)
    rows = [(len(group.prompt.ids), len(completion.ids)) for group in groups for completion in group.completions]
    prompts = [len(group.prompt.ids) for group in groups] if layout == "shared" else [prompt for prompt, _ in rows]
    longest = max(prompt + completion for prompt, completion in rows)
    padded = 0 if layout == "shared" else sum(longest - prompt - completion for prompt, completion in rows)
    assert run.counts == {
        "vision_encodes": 8,
        "prompt_tokens": sum(prompts),
        "completion_tokens": sum(completion for _, completion in rows),
        "padded_tokens": padded,
        "unshared_vision_encodes": sum(len(group) * len(group.prompt.images) for group in groups),
        "unshared_prompt_tokens": sum(prompt for prompt, _ in rows),
    }
    run(groups)
    assert run.counts["vision_encodes"] == 16  # the tower is trained: its gradient is needed again


@pytest.mark.parametrize("family", SHARING)
def test_the_layout_follows_from_the_models_own_forward(subject: Subjects, family: str) -> None:
    it = subject(family)
    run = GroupForward(it.model(), it.facts, examples=it.examples)
    assert run.layout == "shared"
    assert all(check.passed for check in run.verification.checks) and len(run.verification.checks) >= 4


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("llava", {"_attn_implementation": "eager"}, "eager"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "caps its attention scores"),
        ("gemma3", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"),
        ("gemma3", {"layer_types": ["linear_attention", "full_attention"]}, "does not know the state of its layers"),
    ],
)
def test_what_cannot_share_says_why(subject: Subjects, family: str, change: dict[str, Any], reason: str) -> None:
    it = subject(family)
    model = it.model()
    for name, value in change.items():
        setattr(model.get_decoder().config, name, value)
    assert reason in (layouts.why_not_shared(model) or "")
    with pytest.raises(ConfigError, match=reason):
        GroupForward(model, it.facts, layout="shared")


def test_wrong_settings_are_refused(subject: Subjects) -> None:
    it = subject("llava")
    with pytest.raises(ConfigError, match="'packed' is not one of"):
        GroupForward(it.model(), it.facts, layout="packed")
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="PROMPT_TUNING"):
        GroupForward(get_peft_model(it.model(), prompts), it.facts)


def test_attention_dropout_is_refused(subject: Subjects) -> None:
    it = subject("llava")
    model = it.model()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    groups = groups_of(it, "K=2")
    run = GroupForward(model, it.facts, layout="shared")
    run(groups)
    model.train()
    with pytest.raises(ModelError, match="dropout"):
        run(groups)
