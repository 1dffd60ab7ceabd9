"""Completions of several turns with images of their own, in every layout, against plain transformers on the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from boresight.data.images import decode
from boresight.data.schema import read_row
from boresight.data.turns import EncodedTurn, continued, encoded_turn, with_turn
from boresight.model import attention, packing
from boresight.model.forward import GroupForward
from boresight.model.positions import branch_positions
from boresight.types import Completion, Group
from tests.model.conftest import Subject, Subjects, noise
from tests.model.oracle import Result, gradients, ours, picked, plain_logits, weights_of, worst_gradient, worst_logp
from tests.model.test_forward import BOUND, M_ROPE, SHARING
from tests.tiny import FAMILIES

BRANCHES: tuple[tuple[tuple[int, ...], ...], ...] = (((),), ((2,), (0,), (1,)), ((1,), (1,)), ())
"""For each branch, how many images each of its environment's turns brings: one turn of text; three turns; two with an image; no turn."""


def turn(it: Subject, num_images: int, seed: int) -> EncodedTurn:
    """A turn of a user, as the family's template renders it after an assistant's."""
    sizes = ((100, 50), (40, 64)) if num_images > 1 else ((64, 96 + 16 * (seed % 2)),)
    images = [noise(size, 100 + seed + place) for place, size in enumerate(sizes[:num_images])]
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": "and here?"}]
    row = read_row({"prompt": [{"role": "user", "content": parts}], "images": images}, 0)
    text = it.encoder.texts.prompt(row).removeprefix(it.encoder.tokenizer.bos_token or "")
    return encoded_turn(it.encoder, text, row.images, row=0)


def branch(it: Subject, turns: Sequence[Sequence[int] | int], seed: int) -> Completion:
    prompt = it.prompt(0)
    sampled = [it.group(prompt, (length,), seed=seed + length).completions[0] for length in (5, 3, 4, 6)]
    made = sampled[0]
    for place, count in enumerate(turns):
        num_images = count if isinstance(count, int) else sum(count)
        made = continued(with_turn(made, turn(it, num_images, seed + place)), sampled[place + 1])
    return made


def groups_of(it: Subject) -> list[Group]:
    """Four branches of a prompt with an image, two of one without, and a lone completion with images."""
    first = Group(it.prompt(1), tuple(branch(it, turns, 10 * place) for place, turns in enumerate(BRANCHES)))
    second = Group(it.prompt(0, seed=3), (branch(it, [1], 50), branch(it, [0], 60)))
    lone = Group(it.prompt(1, seed=5), (branch(it, [1, 2], 70),))
    return [first, second, lone]


def whole(it: Subject, group: Group, completion: Completion) -> dict[str, Tensor]:
    """The arguments of plain transformers for a prompt with one branch, put together by hand from the processor's own outputs."""
    inputs: dict[str, Tensor] = dict(it.processed(group.prompt))
    length = len(completion.ids)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            image = (completion.ids == it.facts.image_token_id).long()
            inputs[name] = torch.cat([inputs[name], image[None]], 1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], completion.ids[None]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for each in completion.image_sets:
        images = [decode(image, where="test") for image in each.images]
        tokens = "".join(it.encoder.texts.placeholder for _ in images)
        own = it.processor(text=[tokens], images=[images], return_tensors="pt")
        for name, values in own.items():
            if name not in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
                inputs[name] = stacked(it, inputs[name], values) if name in inputs else values
    assert inputs["input_ids"].shape[1] == len(group.prompt.ids) + length
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def stacked(it: Subject, one: Tensor, other: Tensor) -> Tensor:
    """Images after images, padded with zeros to equal sizes as a processor pads those of several images. Idefics has one row of images per
    conversation, the others one per image."""
    along = 1 if it.family in ("idefics2", "idefics3", "smolvlm") else 0
    sizes = [max(pair) for pair in zip(one.shape, other.shape, strict=True)]
    padded = []
    for each in (one, other):
        room = [
            0 if dim == along else size - have for dim, (size, have) in enumerate(zip(sizes, each.shape, strict=True))
        ]
        padded.append(pad(each, [amount for missing in reversed(room) for amount in (0, missing)]))
    return torch.cat(padded, along)


@pytest.fixture(scope="module")
def expected(subject: Subjects) -> Callable[[str], Result]:
    known: dict[str, Result] = {}

    def find(family: str) -> Result:
        if family not in known:
            it = subject(family)
            known[family] = plain(it, it.model(), groups_of(it))
        return known[family]

    return find


def plain(it: Subject, model: Any, groups: Sequence[Group]) -> Result:
    each = [(group, completion) for group in groups for completion in group.completions]
    found = []
    for (group, completion), weight in zip(each, weights_of(groups), strict=True):
        logp = picked(plain_logits(model, whole(it, group, completion), completion.ids), completion.ids)
        (logp * weight).sum().backward()
        found.append(logp.detach() * completion.mask)
    return found, gradients(model)


Expected = Callable[[str], Result]


@pytest.mark.parametrize("layout", ["shared", "rows"])
@pytest.mark.parametrize("family", SHARING)
def test_turns_with_images_equal_plain_transformers(
    subject: Subjects, expected: Expected, family: str, layout: str
) -> None:
    it = subject(family)
    groups = groups_of(it)
    forward = GroupForward(it.model(), it.facts, layout=layout)
    found = ours(forward, groups)
    assert worst_logp(found, expected(family)) <= BOUND
    assert worst_gradient(found, expected(family)) <= 3 * BOUND
    assert forward.counts["completion_tokens"] == sum(group.num_completion_tokens for group in groups)


# ---- Negative controls ---------------------------------------------------------------------------------------------------------------


def everything_counts(it: Subject) -> list[Group]:
    return [
        replace(
            group,
            completions=tuple(replace(each, mask=torch.ones_like(each.mask)) for each in group.completions),
        )
        for group in groups_of(it)
    ]


def images_swapped(it: Subject) -> list[Group]:
    """One branch has the image of another, of equal size, in its second turn."""
    first, *others = groups_of(it)
    made = list(first.completions)
    own, other = made[2].image_sets, branch(it, (1, 1), 40).image_sets
    assert [each.vision.keys() for each in own] == [each.vision.keys() for each in other]
    made[2] = replace(made[2], image_sets=(own[0], other[1]))
    return [replace(first, completions=tuple(made)), *others]


DEFECTS = {"environment's tokens count": everything_counts, "another image of equal size": images_swapped}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_branch_is_far_off(subject: Subjects, expected: Expected, family: str, defect: str) -> None:
    it = subject(family)
    model = it.model()
    groups = DEFECTS[defect](it)
    stats = GroupForward(model, it.facts)(groups)
    weights = torch.nn.utils.rnn.pad_sequence(weights_of(groups), True)
    (stats.logp * weights).sum().backward()
    assert worst_gradient(([], gradients(model)), ([], expected(family)[1])) > 1000 * BOUND


@pytest.mark.parametrize("family", M_ROPE)
def test_positions_that_ignore_images_are_far_off(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    it = subject(family)
    monkeypatch.setattr(
        packing, "positions_within", lambda base, prompt, before, each: branch_positions(before, len(each.ids))
    )
    found = ours(GroupForward(it.model(), it.facts, layout="shared"), groups_of(it))
    assert worst_logp(found, expected(family)) > 100 * BOUND


def test_images_of_branches_attend_within_themselves(
    subject: Subjects, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3 without the blocks of branches."""
    it = subject("gemma3")
    of = attention.BranchTable.of

    def without(row: Any, **options: Any) -> Any:
        table = of(row, **options)
        assert table.branch_blocks is not None
        table.branch_blocks = torch.full_like(table.branch_blocks, -1)
        return table

    monkeypatch.setattr(attention.BranchTable, "of", without)
    found = ours(GroupForward(it.model(), it.facts, layout="shared"), groups_of(it))
    assert worst_logp(found, expected("gemma3")) > 1000 * BOUND
