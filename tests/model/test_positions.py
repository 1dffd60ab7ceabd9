from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from boresight.model.positions import branch_positions, sequence_positions
from boresight.types import Completion
from tests.model.conftest import Subjects
from tests.tiny import FAMILIES

M_ROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe")


def text(start: int, length: int) -> Tensor:
    return (start + torch.arange(length)).expand(3, -1)


def image(start: int, rows: int, columns: int) -> Tensor:
    """Time stands still; rows and columns count from where the image starts."""
    place = torch.arange(rows * columns)
    return torch.stack([torch.zeros_like(place), place // columns, place % columns]) + start


@pytest.mark.parametrize("family", M_ROPE)
def test_m_rope_positions_stand_still_in_time_and_go_on_from_the_largest(subject: Subjects, family: str) -> None:
    it = subject(family)
    prompt = it.prompt(1)  # 64 × 96 pixels: 6 rows of 4 tokens
    before = int(prompt.token_types.argmax())
    after = len(prompt.ids) - before - 24
    expected = torch.cat([text(0, before), image(before, 6, 4), text(before + 6, after)], -1)
    found = sequence_positions(it.model().base_model, prompt)
    assert torch.equal(found, expected)
    assert torch.equal(branch_positions(found, 5), text(before + 6 + after, 5))


@pytest.mark.parametrize("family", M_ROPE)
def test_an_image_inside_a_lone_completion_takes_its_own_positions(subject: Subjects, family: str) -> None:
    it = subject(family)
    whole = it.prompt(2)
    cut = int((whole.token_types == 1).nonzero()[-1]) - 30  # before the second image
    prompt = replace(whole, ids=whole.ids[:cut], token_types=whole.token_types[:cut])
    completion = Completion(
        whole.ids[cut:], torch.ones(len(whole.ids) - cut, dtype=torch.bool), "", token_types=whole.token_types[cut:]
    )
    base = it.model().base_model
    assert torch.equal(sequence_positions(base, prompt, completion), sequence_positions(base, whole))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(M_ROPE)))
def test_everyone_else_counts(subject: Subjects, family: str) -> None:
    it = subject(family)
    prompt = it.prompt(1)
    found = sequence_positions(it.model().base_model, prompt)
    assert torch.equal(found, torch.arange(len(prompt.ids)))
    assert branch_positions(found, 3).tolist() == [len(prompt.ids), len(prompt.ids) + 1, len(prompt.ids) + 2]


def test_a_completion_extends_the_count(subject: Subjects) -> None:
    prompt = subject("llava").prompt(0)
    completion = Completion(torch.tensor([5, 6]), torch.tensor([True, True]), "")
    assert len(sequence_positions(nn.Module(), prompt, completion)) == len(prompt.ids) + 2
