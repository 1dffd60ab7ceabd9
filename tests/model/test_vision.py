from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from boresight.errors import ModelError
from boresight.model.forward import GroupForward
from boresight.model.reference import Reference
from boresight.model.vision import Features, VisionEncoder, join_features, text_parameters, vision_is_frozen
from boresight.modules import checkpoint_activations
from boresight.types import Prompt
from tests.model.conftest import Subjects, noise
from tests.tiny import FAMILIES

TOWERS = ("visual", "vision_tower", "vision_model")


def tower_of(model: Any) -> nn.Module:
    base = model.base_model
    return next(getattr(base, name) for name in TOWERS if hasattr(base, name))


def freeze_vision(model: Any) -> None:
    text = text_parameters(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in text)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """How often the module began to run, whoever called it; a recomputation stops as soon as it has what it needs."""
    calls: list[int] = []
    hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def parts(features: Features) -> list[torch.Tensor]:
    levels = (features.pooled, *features.deepstack)
    return [part for level in levels for part in ((level,) if isinstance(level, torch.Tensor) else level)]


@pytest.mark.parametrize("num_images", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_equal_shapes_equals_one_by_one(subject: Subjects, family: str, num_images: int) -> None:
    it = subject(family)
    prompts = [it.prompt(num_images, seed=seed) for seed in range(3)]
    model = it.model()
    encoder = VisionEncoder(model)
    with torch.no_grad():
        with counted(tower_of(encoder.model)) as calls:
            together = encoder(prompts)
        alone = [VisionEncoder(encoder.model, batch_size=1)([prompt])[0] for prompt in prompts]
        plain = [model.base_model.get_image_features(**prompt.vision, return_dict=True) for prompt in prompts]
    assert len(calls) == 1
    assert encoder.counts["vision_encodes"] == 3 * num_images
    for ours, one, own in zip(together, alone, plain, strict=True):
        assert ours.num_bytes == sum(part.nbytes for part in parts(ours))
        assert bool(ours.deepstack) == (family == "qwen3_vl")
        joined = join_features([one])
        for mine, theirs, models in zip(parts(ours), parts(one), listed(own), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
            torch.testing.assert_close(mine, models, atol=1e-5, rtol=0)
        assert type(joined.pooler_output) is type(one.pooled)
    assert not torch.equal(parts(together[0])[0], parts(together[1])[0])


def listed(output: Any) -> list[torch.Tensor]:
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return [part for level in levels for part in ((level,) if isinstance(level, torch.Tensor) else level)]


@pytest.mark.parametrize(("family", "num_calls"), [("qwen2_5_vl", 3), ("llava_next", 4)])
def test_what_goes_through_the_tower_together(subject: Subjects, family: str, num_calls: int) -> None:
    """Five squares and a tall image, two at a time: patches of any sizes, tiles of equal shapes (two, two, one, and the tall one)."""
    it = subject(family)
    encoder = VisionEncoder(it.model(), batch_size=2)
    same = [it.prompt_of([noise((64, 64), seed)]) for seed in range(5)]
    with torch.no_grad(), counted(tower_of(encoder.model)) as calls:
        encoder([*same, it.prompt_of([noise((64, 200), 0)])])
    assert len(calls) == num_calls
    assert encoder.counts["vision_encodes"] == 6


def test_one_encode_for_each_distinct_set_of_images(subject: Subjects) -> None:
    """Whatever the words around it: four questions about one image, and one about another."""
    it = subject("qwen2_5_vl")
    image, other = noise((64, 64), 0), noise((64, 64), 1)
    prompts = [it.prompt_of([image], text) for text in ("what?", "where is it?", "why?", "who?")]
    encoder = VisionEncoder(it.model())
    found = encoder([*prompts, it.prompt_of([other], "what?")])
    assert encoder.counts["vision_encodes"] == 2
    assert all(torch.equal(parts(features)[0], parts(found[0])[0]) for features in found[:4])
    assert not torch.equal(parts(found[4])[0], parts(found[0])[0])
    assert parts(found[0])[0].requires_grad
    encoder(prompts)
    assert encoder.counts["vision_encodes"] == 3  # a trained tower's features are of one pass


def test_one_encode_for_each_distinct_image(subject: Subjects) -> None:
    """Prompts that share an image and differ in another; an image twice in one prompt; the same two in another order."""
    it = subject("qwen3_vl")
    a, b, c = noise((64, 64), 0), noise((64, 96), 1), noise((96, 64), 2)
    prompts = [it.prompt_of(images, "compare") for images in ([a, b], [a, c], [b, b, a], [c, a])]
    model = it.model()
    encoder = VisionEncoder(model)
    found = encoder(prompts)
    assert encoder.counts["vision_encodes"] == 3
    for features, prompt in zip(found, prompts, strict=True):
        plain = model.base_model.get_image_features(**prompt.vision, return_dict=True)
        assert len(parts(features)) == len(listed(plain))
        for mine, theirs in zip(parts(features), listed(plain), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    total = sum(part.square().sum() for features in found for part in parts(features))
    ours = torch.autograd.grad(total, [*model.base_model.visual.parameters()])  # pyright: ignore[reportArgumentType, reportCallIssue]
    total = sum(
        part.square().sum()
        for prompt in prompts
        for part in listed(model.base_model.get_image_features(**prompt.vision, return_dict=True))
    )
    plain = torch.autograd.grad(total, [*model.base_model.visual.parameters()])  # pyright: ignore[reportArgumentType, reportCallIssue]
    typical = torch.stack([gradient.norm() for gradient in plain]).median()
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * max(theirs.norm(), 1e-3 * typical)


def test_a_frozen_tower_encodes_once_for_policy_old_reference_and_updates(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model()
    freeze_vision(model)
    assert vision_is_frozen(model)
    policy = GroupForward(model, it.facts)
    reference = Reference(policy)
    groups = [it.group(it.prompt(2, seed=seed), (3, 4), seed=seed) for seed in range(3)]
    with counted(tower_of(model)) as own, counted(tower_of(reference.forward.model)) as copied:
        with torch.no_grad():
            policy(groups)
        reference(groups)
        for group in groups:
            policy([group]).logp.sum().backward()
    assert (len(own), len(copied)) == (1, 0)
    assert policy.counts["vision_encodes"] + reference.forward.counts["vision_encodes"] == 6


def test_a_trained_tower_encodes_once_for_each_pass(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    policy = GroupForward(it.model(), it.facts)
    reference = Reference(policy)
    groups = [it.group(it.prompt(1, seed=seed), (3, 4), seed=seed) for seed in range(3)]
    policy(groups).logp.sum().backward()
    reference(groups)
    reference(groups)  # itself frozen: what it knows stays true
    assert policy.counts["vision_encodes"] == reference.forward.counts["vision_encodes"] == 3


def test_what_is_known_is_bounded_and_the_oldest_goes_first(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model()
    freeze_vision(model)
    a, b, c = (it.prompt(1, seed=seed) for seed in range(3))
    size = VisionEncoder(model)([a])[0].num_bytes
    assert size == 24 * 64 * 4  # tokens of 64 × 96 pixels, hidden size, float32
    encoder = VisionEncoder(model, max_cache_gib=2.5 * size / 2**30)

    def encodes(*prompts: Prompt) -> int:
        before = encoder.counts["vision_encodes"]
        encoder(prompts)
        return encoder.counts["vision_encodes"] - before

    assert encodes(a, b) == 2
    assert encodes(a, b) == 0
    assert encodes(c) == 1
    assert encodes(b, c) == 0
    assert encodes(a) == 1
    assert encoder._cache_bytes == 2 * size
    encoder.clear()
    assert encoder._cache_bytes == 0
    assert encodes(c) == 1
    assert VisionEncoder(model, max_cache_gib=0.0)([a])[0].num_bytes == size  # nothing kept, all the same returned


def test_a_tower_that_is_trained_again_forgets(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = it.model()
    freeze_vision(model)
    encoder, prompt = VisionEncoder(model), it.prompt(1)
    (before,) = encoder([prompt])
    assert not parts(before)[0].requires_grad
    model.requires_grad_(True)
    with torch.no_grad():
        next(tower_of(model).parameters()).add_(1.0)
    (after,) = encoder([prompt])
    assert parts(after)[0].requires_grad
    assert not torch.allclose(parts(before)[0], parts(after)[0])
    freeze_vision(model)
    assert encoder.counts["vision_encodes"] == 2
    encoder([prompt])
    assert encoder.counts["vision_encodes"] == 3


def test_a_trained_projector_is_not_frozen(subject: Subjects) -> None:
    model = subject("gemma3").model()
    freeze_vision(model)
    model.model.multi_modal_projector.requires_grad_(True)
    assert not vision_is_frozen(model)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llava_next", "gemma3", "internvl"])
def test_recomputing_the_language_model_does_not_run_the_tower_again(subject: Subjects, family: str) -> None:
    it = subject(family)
    group = it.group(it.prompt(1), (3, 4))
    for frozen, recomputed in ((True, 0), (False, 1)):
        model = it.model().train()
        if frozen:
            freeze_vision(model)
        checkpoint_activations(model, {"use_reentrant": False})
        run, tower = GroupForward(model, it.facts), tower_of(model)
        block = next(
            module
            for module in tower.modules()
            if type(module).__name__.endswith(("Block", "EncoderLayer", "VisionLayer"))
        )
        layer = model.get_decoder().layers[0]
        # What a layer holds: not every version of transformers calls a recomputed layer's own hooks.
        with counted(tower) as towers, counted(next(block.children())) as blocks, counted(layer.mlp) as layers:
            run([group]).logp.sum().backward()
        assert len(towers) == 1
        assert len(layers) == 2  # checkpointing is on
        assert len(blocks) == 1 + recomputed


def test_tensors_that_the_model_does_not_take_are_refused(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    prompt = it.prompt(1)
    foreign = replace(prompt, vision={**prompt.vision, "image_sizes": torch.ones(1, 2)})
    with pytest.raises(ModelError, match=r"image_sizes .*do not match"):
        VisionEncoder(it.model())([foreign])
