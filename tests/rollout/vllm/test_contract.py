"""What every sampler promises, asked of transformers', of vLLM in this process, and of a vLLM server alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from boresight.data.encode import Encoder
from boresight.data.images import load_image
from boresight.data.turns import continued, encoded_turn, with_turn
from boresight.model.forward import GroupForward
from boresight.sampling import SamplingSettings
from boresight.types import Group
from tests.rollout.conftest import noise

from .conftest import Rig, Samplers

LENGTH = 12


def ids_of(groups: Sequence[Group]) -> list[list[int]]:
    return [completion.ids.tolist() for group in groups for completion in group.completions]


def trainer_logp(rig: Rig, groups: Sequence[Group], temperature: float = 1.0, model: Any = None) -> list[torch.Tensor]:
    """One row per completion, of the trainer's own pass."""
    forward = GroupForward(rig.model if model is None else model, rig.facts)
    with torch.no_grad():
        rows = forward(list(groups), temperature=temperature, ban_modalities=True).logp
    completions = [completion for group in groups for completion in group.completions]
    return [row[: len(completion.ids)] for row, completion in zip(rows, completions, strict=True)]


def furthest(rig: Rig, groups: Sequence[Group], temperature: float = 1.0, model: Any = None) -> float:
    """The largest distance of a sampler's log-probabilities from the trainer's, in nats."""
    completions = [completion for group in groups for completion in group.completions]
    pairs = zip(completions, trainer_logp(rig, groups, temperature, model), strict=True)
    return max(float((completion.sampler_logp - row).abs().max()) for completion, row in pairs)  # pyright: ignore[reportOptionalOperand]


def greedy_by_hand(rig: Rig, place: int) -> list[int]:
    """transformers' plain forward, the likeliest token that is not banned, one after the other."""
    prompt, ids = rig.prompts[place], rig.prompts[place].ids.tolist()
    while len(ids) < len(prompt.ids) + LENGTH:
        whole = torch.tensor([ids])
        types = torch.cat([prompt.token_types, torch.zeros(len(ids) - len(prompt.ids), dtype=torch.long)])[None]
        with torch.no_grad():
            logits = rig.model.eval()(
                input_ids=whole, mm_token_type_ids=types, use_cache=False, **prompt.vision
            ).logits[0, -1]
        logits[list(rig.facts.modality_ids)] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] in rig.facts.stop_ids:
            break
    return ids[len(prompt.ids) :]


def test_greedy_completions_are_those_of_plain_transformers(sampler: Samplers, rig: Rig) -> None:
    groups = sampler().sample(rig.prompts, SamplingSettings(2, LENGTH, temperature=0.0))
    expected = [greedy_by_hand(rig, place) for place in range(len(rig.prompts)) for _ in range(2)]
    assert ids_of(groups) == expected
    assert [group.prompt for group in groups] == list(rig.prompts)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probabilities_are_the_trainers(sampler: Samplers, rig: Rig, temperature: float) -> None:
    """Of the distribution that was drawn from: without banned ids, at the sampling temperature (greedily: at 1)."""
    groups = sampler().sample(rig.prompts, SamplingSettings(4, LENGTH, temperature=temperature, seed=5))
    assert furthest(rig, groups, temperature or 1.0) < 1e-3


def test_a_seed_repeats_a_row_whatever_it_shares_a_call_with(sampler: Samplers, rig: Rig) -> None:
    it = sampler()
    together = it.sample(rig.prompts, SamplingSettings(4, LENGTH, seed=7))
    alone = it.sample(rig.prompts[1:2], SamplingSettings(4, LENGTH, seed=7))
    other = it.sample(rig.prompts[1:2], SamplingSettings(4, LENGTH, seed=8))
    assert ids_of(alone) == ids_of(together[1:2])
    assert ids_of(other) != ids_of(alone)
    assert len({tuple(ids) for ids in ids_of(alone)}) > 1  # completions of a group differ


def test_a_row_that_comes_twice_is_sampled_anew(sampler: Samplers, rig: Rig) -> None:
    first, second = sampler().sample([rig.prompts[0]] * 2, SamplingSettings(2, LENGTH, seed=7))
    assert ids_of([first]) != ids_of([second])


def test_without_a_seed_torch_decides(sampler: Samplers, rig: Rig) -> None:
    it, settings = sampler(), SamplingSettings(2, LENGTH)
    torch.manual_seed(11)
    first = it.sample(rig.prompts, settings)
    again = it.sample(rig.prompts, settings)
    torch.manual_seed(11)
    assert ids_of(it.sample(rig.prompts, settings)) == ids_of(first) != ids_of(again)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_exactly_as_many_completions_as_asked_for(sampler: Samplers, rig: Rig, k: int) -> None:
    groups = sampler().sample(rig.prompts, SamplingSettings(k, 4, seed=1))
    assert [len(group) for group in groups] == [k, k, k]
    for completion in (completion for group in groups for completion in group.completions):
        stopped = int(completion.ids[-1]) in rig.facts.stop_ids
        assert completion.truncated != stopped
        assert stopped or len(completion.ids) == 4


def test_every_stop_id_ends_a_completion_and_is_its_last_token(sampler: Samplers, rig: Rig) -> None:
    greedy = greedy_by_hand(rig, 0)
    stop = greedy[3]
    groups = sampler(stop_ids=(*rig.facts.stop_ids, stop)).sample(
        rig.prompts[:1], SamplingSettings(1, LENGTH, temperature=0.0)
    )
    (completion,) = groups[0].completions
    assert completion.ids.tolist() == greedy[: greedy.index(stop) + 1]
    assert not completion.truncated


def test_banned_ids_are_never_sampled(sampler: Samplers, rig: Rig) -> None:
    """However likely: here nine ids in ten are banned, by turns with requests that ban few."""
    few = range(460, 512)
    banned = tuple(id for id in range(512) if id not in few)
    it = sampler(modality_ids=banned)
    groups = it.sample(rig.prompts, SamplingSettings(8, LENGTH, seed=3))
    drawn = {id for ids in ids_of(groups) for id in ids}
    assert drawn <= set(few)
    assert len(drawn) > 20
    # And their probability is shared out among the rest.
    assert all(float(completion.sampler_logp.exp().max()) > 1 / 512 for g in groups for completion in g.completions)  # pyright: ignore[reportOptionalMemberAccess]


def test_text_is_decoded_without_special_tokens(sampler: Samplers, rig: Rig) -> None:
    groups = sampler().sample(rig.prompts, SamplingSettings(2, LENGTH, seed=2))
    for group in groups:
        for completion in group.completions:
            assert completion.text == rig.processor.tokenizer.decode(completion.ids, skip_special_tokens=True)


def test_no_prompts_no_groups(sampler: Samplers) -> None:
    assert sampler().sample([], SamplingSettings(2, 4)) == []


def test_a_completion_goes_on_after_an_environments_turn(sampler: Samplers, rig: Rig) -> None:
    """With an image in it, or text alone: the log-probabilities of the next turn are the trainer's, and it ends in its own room."""
    it, encoder = sampler(), Encoder(rig.processor, facts=rig.facts)
    own = rig.prompts[0], rig.prompts[2]
    begun = []
    for place, group in enumerate(it.sample(own, SamplingSettings(2, LENGTH, seed=3))):
        images = [load_image(noise((56, 84), 90 + place), where="test")] if place == 0 else []
        text = "\n<|im_start|>user\n" + encoder.texts.placeholder * len(images) + "<|im_end|>\n<|im_start|>assistant\n"
        turn = encoded_turn(encoder, text, images, row=place)
        begun += [(group.prompt, with_turn(completion, turn)) for completion in group.completions]
    prompts = [prompt.followed_by(turns) for prompt, turns in begun]
    length = max(len(turns.ids) for _, turns in begun) + 4
    after = it.sample(prompts, SamplingSettings(1, length, seed=4))
    groups = [
        Group(prompt, (continued(turns, group.completions[0]),))
        for (prompt, turns), group in zip(begun, after, strict=True)
    ]
    assert [bool(group.completions[0].image_sets) for group in groups] == [True, True, False, False]
    assert max(group.num_completion_tokens for group in groups) <= length
    assert furthest(rig, groups) < 1e-3
