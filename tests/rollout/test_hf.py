from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from boresight.modules import checkpoint_activations, named_cache
from boresight.rollout.hf import HFSampler
from boresight.sampling import SamplingSettings
from boresight.types import Completion, Group, HasImages, Prompt
from tests.rollout.conftest import Subject
from tests.tiny import FAMILIES

Subjects = Callable[[str], Subject]
LENGTH = 12


def sampler(subject: Subject, **options: Any) -> HFSampler:
    return HFSampler(lambda: subject.model, subject.facts, subject.processor.tokenizer, **options)


def model_inputs(subject: Subject, prompt: Prompt) -> dict[str, Tensor]:
    """What the processor would hand to `generate`."""
    inputs = {
        "input_ids": prompt.ids[None],
        "attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long),
        **prompt.vision,
    }
    named = "token_type_ids" if subject.family == "gemma3" else "mm_token_type_ids"
    return inputs | ({named: prompt.token_types[None]} if subject.family.startswith(("qwen", "gemma")) else {})


def generated(subject: Subject, prompt: Prompt, **options: Any) -> list[int]:
    """transformers' own greedy completion, under the same bans and stop ids."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=LENGTH,
        eos_token_id=list(subject.facts.stop_ids),
        pad_token_id=subject.facts.pad_id,
        suppress_tokens=list(subject.facts.modality_ids),
        **options,
    )
    ids = subject.model.eval().generate(**model_inputs(subject, prompt), generation_config=config)
    return ids[0, len(prompt.ids) :].tolist()


def teacher_forced(subject: Subject, prompt: Prompt, completion: Completion, temperature: float = 1.0) -> Tensor:
    """[C] log-probabilities of a completion in one plain forward over prompt and completion, without banned ids."""
    inputs = model_inputs(subject, prompt)
    extra = torch.zeros_like(completion.ids)[None]
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], extra], 1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion.ids[None]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = subject.model.eval()(**inputs, use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, list(subject.facts.modality_ids)] = -torch.inf
    return (logits / temperature).log_softmax(-1).gather(1, completion.ids[:, None])[:, 0]


def ids_of(groups: Sequence[Group]) -> list[list[int]]:
    return [completion.ids.tolist() for group in groups for completion in group.completions]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate_for_ragged_prompts_in_one_call(subject: Subjects, family: str) -> None:
    it = subject(family)
    groups = sampler(it).sample(it.prompts, SamplingSettings(2, LENGTH, temperature=0.0))
    for prompt, group in zip(it.prompts, groups, strict=True):
        expected = generated(it, prompt)
        assert [completion.ids.tolist() for completion in group.completions] == [expected, expected]
        assert group.prompt is prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_a_plain_forward(subject: Subjects, family: str) -> None:
    it = subject(family)
    torch.manual_seed(4)
    groups = sampler(it).sample(it.prompts, SamplingSettings(3, LENGTH, temperature=0.7))
    lengths = set()
    for group in groups:
        for completion in group.completions:
            assert completion.sampler_logp is not None and completion.sampler_logp.dtype == torch.float32
            expected = teacher_forced(it, group.prompt, completion, 0.7)
            torch.testing.assert_close(completion.sampler_logp, expected, atol=1e-4, rtol=0)
            lengths.add(len(completion.ids))
            # Negative control: the next prompt's images and text give other log-probabilities.
            other = it.prompts[(group.prompt.row.index + 1) % 3]
            assert (teacher_forced(it, other, completion, 0.7) - completion.sampler_logp).abs().max() > 1e-2
    assert len({tuple(ids) for ids in ids_of(groups)}) == 9


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "qwen3_5", "qwen3_5_moe", "lfm2_vl"])
def test_uneven_endings_change_nothing(subject: Subjects, family: str) -> None:
    """Many stop ids end completions at different steps, so slots are dropped on the way; the others go on as before."""
    it = subject(family)
    stops = tuple(id for id in range(0, 512, 9) if id not in it.facts.modality_ids)
    it = replace(it, facts=replace(it.facts, stop_ids=stops))
    ours = sampler(it)
    groups = ours.sample(it.prompts, SamplingSettings(6, 40, seed=11))
    lengths = [len(ids) for ids in ids_of(groups)]
    assert len(set(lengths)) > 5
    assert 0 < ours.counts["padded_tokens"] < sum(max(lengths) - length for length in lengths) / 2
    for group in groups:
        for completion in group.completions:
            ended = completion.ids[-1].item() in stops
            assert completion.truncated == (not ended)
            assert not set(completion.ids[:-1].tolist()) & set(stops)
            expected = teacher_forced(it, group.prompt, completion)
            torch.testing.assert_close(completion.sampler_logp, expected, atol=1e-4, rtol=0)


def test_what_a_group_holds(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    group = sampler(it).sample(it.prompts[:1], SamplingSettings(5, 7, seed=3))[0]
    assert len(group) == 5
    for completion in group.completions:
        assert completion.mask.all() and completion.mask.shape == completion.ids.shape
        assert completion.text == it.processor.tokenizer.decode(completion.ids, skip_special_tokens=True)
        assert completion.truncated == (completion.ids[-1].item() not in it.facts.stop_ids)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_every_stop_id_ends_a_completion_and_belongs_to_it(subject: Subjects, family: str) -> None:
    it = subject(family)
    prompt = it.prompts[0]
    free = generated(it, prompt)
    for place in (0, 3, 7):
        facts = replace(it.facts, stop_ids=(*it.facts.stop_ids, free[place]))
        first = free.index(free[place])
        group = sampler(replace(it, facts=facts)).sample([prompt], SamplingSettings(1, LENGTH, temperature=0.0))[0]
        assert group.completions[0].ids.tolist() == free[: first + 1]
        assert not group.completions[0].truncated


def test_banned_ids_are_never_sampled_however_likely(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    banned = list(it.facts.modality_ids)
    assert it.facts.image_token_id in banned

    def push(_module: Any, _inputs: Any, logits: Tensor) -> Tensor:
        logits[..., banned] += 1e4
        return logits

    hook = it.model.lm_head.register_forward_hook(push)
    try:
        for temperature in (0.0, 1.0):
            settings = SamplingSettings(4, LENGTH, temperature=temperature, seed=1)
            groups = sampler(it).sample(it.prompts, settings)
            assert not {id for ids in ids_of(groups) for id in ids} & set(banned)
            assert all(
                c.sampler_logp is not None and c.sampler_logp.isfinite().all() for g in groups for c in g.completions
            )
            # Negative control: without the ban nothing else would be sampled.
            unbanned = sampler(replace(it, facts=replace(it.facts, modality_ids=())))
            assert {id for ids in ids_of(unbanned.sample(it.prompts, settings)) for id in ids} <= set(banned)
    finally:
        hook.remove()


def test_a_checkpoints_sampling_defaults_are_not_used(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    settings = SamplingSettings(2, LENGTH, seed=5)
    plain = ids_of(sampler(it).sample(it.prompts, settings))
    model = copy.deepcopy(it.model)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, repetition_penalty=9.0, min_new_tokens=9
    )
    assert ids_of(sampler(replace(it, model=model)).sample(it.prompts, settings)) == plain


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5"])
def test_repetition_penalty_is_over_prompt_and_completion(subject: Subjects, family: str) -> None:
    it = subject(family)
    groups = sampler(it).sample(it.prompts, SamplingSettings(1, LENGTH, temperature=0.0, repetition_penalty=1.7))
    expected = [generated(it, prompt, repetition_penalty=1.7) for prompt in it.prompts]
    assert ids_of(groups) == expected
    assert expected != [generated(it, prompt) for prompt in it.prompts]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_5", "lfm2_vl"])
def test_a_seed_gives_the_same_completions_whatever_shares_the_call(subject: Subjects, family: str) -> None:
    it = subject(family)
    settings = SamplingSettings(3, LENGTH, seed=7)
    together = ids_of(sampler(it).sample(it.prompts, settings))
    state = torch.get_rng_state()
    backwards = sampler(it).sample(it.prompts[::-1], settings)
    alone = [sampler(it).sample([prompt], settings)[0] for prompt in it.prompts]
    assert torch.equal(torch.get_rng_state(), state)
    assert ids_of(backwards[::-1]) == together
    assert ids_of(alone) == together
    assert ids_of(sampler(it).sample(it.prompts, replace(settings, seed=8))) != together
    twice = sampler(it).sample([it.prompts[0], it.prompts[0]], settings)
    assert ids_of(twice[:1]) == together[:3]
    assert ids_of(twice[1:]) != together[:3]


def test_the_global_generator_resumes(subject: Subjects) -> None:
    it = subject("smolvlm")
    settings = SamplingSettings(3, LENGTH)
    torch.manual_seed(2)
    first = sampler(it).sample(it.prompts, settings)
    state = torch.get_rng_state()
    second = sampler(it).sample(it.prompts, settings)
    torch.set_rng_state(state)
    again = sampler(it).sample(it.prompts, settings)
    assert ids_of(second) == ids_of(again) != ids_of(first)
    for one, other in zip(second, again, strict=True):
        for a, b in zip(one.completions, other.completions, strict=True):
            assert torch.equal(a.sampler_logp, b.sampler_logp)  # pyright: ignore[reportArgumentType]


def test_every_module_returns_to_its_mode_and_gradients_stay_off(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = copy.deepcopy(it.model).train()
    model.model.visual.eval()
    before = {name: module.training for name, module in model.named_modules()}
    modes: list[bool] = []
    model.model.language_model.register_forward_hook(
        lambda module, *_: modes.append(module.training or torch.is_grad_enabled())
    )
    sampler(replace(it, model=model)).sample(it.prompts, SamplingSettings(2, 3))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert len(set(before.values())) == 2
    assert modes and not any(modes)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory, say")

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="say"):
        sampler(replace(it, model=model)).sample(it.prompts, SamplingSettings(2, 3))
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "smolvlm", "internvl", "qwen3_5", "lfm2_vl"])
def test_gradient_checkpointing_changes_nothing(subject: Subjects, family: str) -> None:
    it = subject(family)
    settings = SamplingSettings(2, LENGTH, temperature=0.0)
    plain = ids_of(sampler(it).sample(it.prompts, settings))
    model = copy.deepcopy(it.model).train()
    checkpoint_activations(model, {"use_reentrant": False})
    assert ids_of(sampler(replace(it, model=model)).sample(it.prompts, settings)) == plain
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_adapters_take_part_without_their_dropout(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    adapter = LoraConfig(r=4, lora_dropout=0.9, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = get_peft_model(copy.deepcopy(it.model), adapter).train()
    ours = HFSampler(lambda: wrapped, it.facts, it.processor.tokenizer)
    settings = SamplingSettings(2, LENGTH, temperature=0.0)
    groups = ours.sample(it.prompts, settings)
    merged = replace(it, model=copy.deepcopy(wrapped).merge_and_unload().eval())  # pyright: ignore[reportCallIssue]
    for group in groups:
        for completion in group.completions:
            expected = teacher_forced(merged, group.prompt, completion)
            torch.testing.assert_close(completion.sampler_logp, expected, atol=1e-4, rtol=0)
    assert ids_of(groups) != ids_of(sampler(it).sample(it.prompts, settings))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_training_and_sampling_leave_no_positions_behind(subject: Subjects, family: str) -> None:
    """M-RoPE models keep `rope_deltas` on themselves; sampling neither reads nor writes them."""
    it = subject(family)
    settings = SamplingSettings(2, LENGTH, temperature=0.0)
    fresh = ids_of(sampler(it).sample(it.prompts[:2], settings))
    first, second = it.prompts[:2]

    def train_pass(prompt: Prompt) -> Tensor:
        return it.model.train()(**model_inputs(it, prompt), use_cache=False).logits

    before = train_pass(second)
    train_pass(first)
    deltas = it.model.model.rope_deltas
    assert deltas is not None
    assert ids_of(sampler(it).sample(it.prompts[:2], settings)) == fresh
    assert it.model.model.rope_deltas is deltas
    assert torch.equal(train_pass(second), before)

    # Negative control: decoding that reads the model's deltas goes wrong after a pass over another prompt.
    it.model.eval()
    with torch.no_grad():
        cache = DynamicCache(config=it.model.config.text_config)
        it.model(**model_inputs(it, first), use_cache=True, **named_cache(it.model, cache))
        stale = deltas + 5
        logits = []
        for delta in (deltas, stale):
            it.model.model.rope_deltas = delta
            kept = copy.deepcopy(cache)
            logits.append(
                it.model(input_ids=first.ids[None, -1:], use_cache=True, **named_cache(it.model, kept)).logits
            )
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_counts(subject: Subjects, family: str) -> None:
    it = subject(family)
    ours = sampler(it)
    encoded: list[int] = []
    tower = it.model.base_model.get_image_features
    it.model.base_model.get_image_features = lambda *a, **k: encoded.append(1) or tower(*a, **k)
    try:
        groups = ours.sample(it.prompts, SamplingSettings(4, LENGTH, seed=0))
    finally:
        del it.model.base_model.get_image_features
    assert len(encoded) == 2
    assert ours.counts["vision_encodes"] == 3
    assert ours.counts["prompt_tokens"] == sum(len(prompt.ids) for prompt in it.prompts)
    assert ours.counts["completion_tokens"] == sum(len(ids) for ids in ids_of(groups))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3", "llava_next"])
def test_given_features_stand_in_for_the_tower(subject: Subjects, family: str) -> None:
    it = subject(family)
    settings = SamplingSettings(2, LENGTH, temperature=0.0)
    plain = ids_of(sampler(it).sample(it.prompts, settings))
    asked: list[HasImages] = []

    def features(prompts: Sequence[Sequence[HasImages]]) -> list[Any]:
        found = []
        for (images,) in prompts:
            asked.append(images)
            grids = {name: value for name, value in images.vision.items() if name != "pixel_values"}
            found.append(
                it.model.base_model.get_image_features(images.vision["pixel_values"], **grids, return_dict=True)
            )
        return found

    ours = sampler(it, features=features)
    assert ids_of(ours.sample(it.prompts, settings)) == plain
    assert asked == list(it.prompts[:2])
    assert ours.counts["vision_encodes"] == 0


def test_models_that_cannot_branch_say_so_once(
    subject: Subjects, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = subject("qwen3_5")
    monkeypatch.setattr("boresight.state_layers.STATE_LAYERS", frozenset())
    ours = sampler(it)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            groups = ours.sample(it.prompts, SamplingSettings(2, LENGTH, temperature=0.0))
    assert [record.message for record in caplog.records if "linear_attention" in record.message] == [
        "Qwen3_5ForConditionalGeneration samples one prompt at a time, one row per completion: boresight does not know the state of "
        "its layers of type linear_attention."
    ]
    assert ids_of(groups) == [ids for prompt in it.prompts for ids in [generated(it, prompt)] * 2]
