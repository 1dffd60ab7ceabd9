"""Turns continued from what is known of a prompt, against the same turns read from their beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from boresight.data.encode import Encoder
from boresight.data.schema import read_row
from boresight.data.turns import continued, encoded_turn, with_turn
from boresight.model.vision import VisionEncoder
from boresight.rollout.continuing import KnownTurns
from boresight.rollout.hf import HFSampler
from boresight.sampling import SamplingSettings
from boresight.types import Completion, Group, HasImages, Prompt
from tests.rollout.conftest import Subject, noise
from tests.tiny import FAMILIES

Subjects = Callable[[str], Subject]
SETTINGS = SamplingSettings(2, 60, seed=5, continues=True)
NEXT = replace(SETTINGS, num_completions=1, max_completion_length=200, temperature=0.0)
"""Of later turns."""
AGAIN = {
    "gemma3": "turns with images",  # it attends within an image both ways only where the cache is empty
    "qwen3_5": "layers with a state",
    "qwen3_5_moe": "layers with a state",
    "lfm2_vl": "layers with a state",
}
"""Families that read turns again, and what they report."""


def sampler(it: Subject) -> HFSampler:
    features = VisionEncoder(it.model).outputs
    return HFSampler(lambda: it.model, it.facts, it.processor.tokenizer, features=features)


def appended(it: Subject, made: Completion, num_images: int, seed: int) -> Completion:
    """A completion with a user's turn after it."""
    encoder = Encoder(it.processor, facts=it.facts)
    images = [noise((64, 96), seed + place) for place in range(num_images)]
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": "and here?"}]
    row = read_row({"prompt": [{"role": "user", "content": parts}], "images": images}, 0)
    text = encoder.texts.prompt(row).removeprefix(encoder.tokenizer.bos_token or "")
    return with_turn(made, encoded_turn(encoder, text, row.images, row=0))


def short(group: Group) -> list[Completion]:
    """Its completions, cut to seven and nine tokens."""
    return [
        replace(
            each, ids=each.ids[:n], mask=each.mask[:n], sampler_logp=each.sampler_logp[:n], unexpanded_ids=each.ids[:n]
        )
        for each, n in zip(group.completions, (7, 9), strict=True)
        if each.sampler_logp is not None
    ]


def rollout(it: Subject, ours: HFSampler, *, images: Sequence[int] = (1, 2), seed: int = 0) -> list[Group]:
    """Two completions each of two prompts; all go on once, and one of each prompt a second time. The groups of the later turns."""
    prompts = list(it.prompts[:2])
    first = ours.sample(prompts, SETTINGS)
    known = [(group.prompt, made) for group in first for made in short(group)]
    found: list[Group] = []
    for turn in (0, 1):
        going = known[:: turn + 1]
        grown = [
            (base, appended(it, made, images[turn], 100 * seed + 10 * place))
            for place, (base, made) in enumerate(going)
        ]
        asked = [base.followed_by(made) for base, made in grown]
        longest = max(len(made.ids) for _, made in grown)
        groups = ours.sample(asked, replace(NEXT, max_completion_length=longest + 8))
        found += groups
        known = [
            (base, continued(made, replace(group.completions[0], unexpanded_ids=None)))
            for (base, made), group in zip(grown, groups, strict=True)
        ]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_continued_turn_equals_one_read_from_its_beginning(
    subject: Subjects, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    it = subject(family)
    ours = sampler(it)
    with caplog.at_level(logging.WARNING):
        groups = rollout(it, ours)
    told = [record.message for record in caplog.records if "again" in record.message]
    assert len(told) == (family in AGAIN)
    assert AGAIN.get(family, "") in "".join(told)
    for group in groups:
        fresh = sampler(it)
        assert group.prompt.begun is not None
        length = len(group.prompt.begun[1].ids) + len(group.completions[0].ids)
        (whole,) = fresh.sample([group.prompt], replace(NEXT, max_completion_length=length))
        (one,), (other,) = group.completions, whole.completions
        assert one.ids.tolist() == other.ids.tolist()
        assert one.sampler_logp is not None and other.sampler_logp is not None
        torch.testing.assert_close(one.sampler_logp, other.sampler_logp, atol=1e-5, rtol=0)


def test_only_a_turns_own_tokens_and_images_are_read(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    ours, again = (HFSampler(lambda: it.model, it.facts, it.processor.tokenizer) for _ in range(2))
    groups = rollout(it, ours)
    again._known = KnownTurns(print)
    again._known._verified = {False: False, True: False}  # pyright: ignore[reportPrivateUsage]
    assert [each.completions[0].ids.tolist() for each in rollout(it, again)] == [
        each.completions[0].ids.tolist() for each in groups
    ]
    prompts = sum(len(prompt.ids) for prompt in it.prompts[:2])
    whole = sum(len(group.prompt.ids) for group in groups)
    assert again.counts["prompt_tokens"] == prompts + whole
    # Four branches begin with their prompt known; the two that go on know all that their first turn had.
    known = 2 * prompts + sum(len(group.prompt.ids) for group in (groups[0], groups[2]))
    assert ours.counts["prompt_tokens"] == prompts + whole - known
    assert again.counts["vision_encodes"] == 3 + 4 + 2 * 3 + 2 + 4 + 3
    assert ours.counts["vision_encodes"] == 3 + 4 * 1 + 2 * 2


class Counted(VisionEncoder):
    """Notes how many sets of images each call of the tower has."""

    calls: list[int]

    def _output(self, prompts: Sequence[HasImages]) -> Any:
        self.calls.append(len(prompts))
        return super()._output(prompts)


BEGIN = {
    "qwen2_5_vl": ([3, 4], [1, 2, 1, 1, 1, 1]),  # the prompts' three images, then one of each of four branches
    "gemma3": ([1, 1, 4], [1, 1, 1, 1]),  # a prompt with two images is no shape of the others
}
"""The first calls of the tower in a rollout, with images encoded together, and one prompt or branch at a time."""


@pytest.mark.parametrize("family", BEGIN)
def test_images_of_a_turn_are_encoded_together(subject: Subjects, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject(family)
    found: list[list[Group]] = []
    calls: list[list[int]] = []
    for together in (16, 1):
        monkeypatch.setattr("boresight.rollout.branches.ENCODED_TOGETHER", together)
        vision = Counted(it.model)
        vision.calls = []
        ours = HFSampler(lambda: it.model, it.facts, it.processor.tokenizer, features=vision.outputs)
        found.append(rollout(it, ours, images=(1, 1)))
        calls.append(vision.calls)
    for one, other in zip(*found, strict=True):
        assert one.completions[0].ids.tolist() == other.completions[0].ids.tolist()
        torch.testing.assert_close(
            one.completions[0].sampler_logp, other.completions[0].sampler_logp, atol=1e-5, rtol=0
        )
    begin, alone = BEGIN[family]
    assert calls[0][: len(begin)] == begin and calls[1][: len(alone)] == alone
    assert len(calls[0]) < len(calls[1])


def test_equal_ids_with_other_images_are_another_branch(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    ours = sampler(it)
    prompt = it.prompts[0]
    (group,) = ours.sample([prompt], SETTINGS)
    made = short(group)[0]
    pair = [appended(it, made, 1, seed) for seed in (3, 4)]
    assert pair[0].ids.tolist() == pair[1].ids.tolist()
    one = replace(NEXT, max_completion_length=100)
    first = ours.sample([prompt.followed_by(each) for each in pair], one)
    assert (first[0].completions[0].sampler_logp[0] - first[1].completions[0].sampler_logp[0]).abs() > 1e-4  # pyright: ignore
    longer = [appended(it, each, 0, 0) for each in pair]
    for found, turns in zip(ours.sample([prompt.followed_by(each) for each in longer], one), longer, strict=True):
        (whole,) = sampler(it).sample([prompt.followed_by(turns)], one)
        torch.testing.assert_close(
            found.completions[0].sampler_logp, whole.completions[0].sampler_logp, atol=1e-5, rtol=0
        )


def test_nothing_is_known_once_weights_moved(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    ours = sampler(it)
    prompt: Prompt = it.prompts[0]
    (group,) = ours.sample([prompt], SETTINGS)
    turns = prompt.followed_by(appended(it, short(group)[0], 1, 3))
    one = replace(NEXT, max_completion_length=100)
    (before,) = ours.sample([turns], one)
    weight = it.model.get_decoder().layers[0].self_attn.v_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        (stale,) = ours.sample([turns], one)
        ours.weights_moved()
        (moved,) = ours.sample([turns], one)
        (whole,) = sampler(it).sample([turns], one)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert moved.completions[0].ids.tolist() == whole.completions[0].ids.tolist()
    torch.testing.assert_close(moved.completions[0].sampler_logp, whole.completions[0].sampler_logp, atol=1e-5, rtol=0)
    # Negative controls: what was known before is another thing.
    for other in (before, stale):
        assert other.completions[0].ids.tolist() != whole.completions[0].ids.tolist() or (
            (other.completions[0].sampler_logp - whole.completions[0].sampler_logp).abs().max() > 1e-3  # pyright: ignore
        )
