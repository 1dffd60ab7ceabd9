from __future__ import annotations

import torch
from torch import Tensor, nn

from boresight.model.packing import completion_mask, pack
from boresight.types import Completion, Group, Prompt, Row

T, F = True, False


def prompt(*ids: int) -> Prompt:
    row = Row(0, "", (), (), {})
    return Prompt(row, torch.tensor(ids), torch.zeros(len(ids), dtype=torch.long), {}, torch.tensor(ids))


def completion(ids: list[int], mask: list[bool] | None = None) -> Completion:
    return Completion(torch.tensor(ids), torch.tensor(mask or [T] * len(ids)), "")


GROUPS = [
    Group(prompt(10, 11, 12), (completion([20, 21], [F, T]), completion([30, 31, 32, 33], [T, F, F, T]))),
    Group(prompt(40, 41), (completion([50]),)),
]


def test_a_row_by_hand() -> None:
    row = pack(nn.Module(), GROUPS)
    assert [(span.start, span.prompt, span.branches) for span in row.spans] == [(0, 3, (2, 4)), (9, 2, (1,))]
    assert row.ids.tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 33, 40, 41, 50]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1, 2]
    # 21 after 20; 30 after the prompt's last token, 33 after 32; 50 after its own prompt.
    assert row.predictors.tolist() == [3, 2, 7, 10]
    assert row.targets.tolist() == [21, 30, 33, 50]
    assert row.mask.tolist() == [[F, T, F, F], [T, F, F, T], [T, F, F, F]]
    assert not row.token_types.any()


class Spatial(nn.Module):
    """Three axes that run at different speeds, and token types that matter."""

    def get_rope_index(self, input_ids: Tensor, mm_token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.arange(input_ids.shape[1]) + 10 * mm_token_type_ids
        return torch.stack([steps, 2 * steps, 3 * steps]), torch.zeros(1)


def test_branches_go_on_from_the_largest_of_three_axes() -> None:
    row = pack(Spatial(), GROUPS[:1])
    assert row.positions[0].tolist() == [0, 1, 2, 7, 8, 7, 8, 9, 10]
    assert row.positions[1].tolist() == [0, 2, 4, 7, 8, 7, 8, 9, 10]
    assert row.positions[2].tolist() == [0, 3, 6, 7, 8, 7, 8, 9, 10]


def test_a_lone_completion_with_types_has_the_models_own_positions() -> None:
    lone = Completion(torch.tensor([5, 6]), torch.tensor([T, T]), "", token_types=torch.tensor([0, 1]))
    row = pack(Spatial(), [Group(prompt(1, 2), (lone,))])
    assert row.positions[0].tolist() == [0, 1, 2, 13]
    assert row.token_types.tolist() == [0, 0, 0, 1]


def test_a_completion_of_which_nothing_counts_predicts_nothing() -> None:
    row = pack(nn.Module(), [Group(prompt(1, 2), (completion([3, 4], [F, F]), completion([5])))])
    assert row.predictors.tolist() == [1]
    assert row.mask.tolist() == [[F, F], [T, F]]


def test_masks_are_padded_to_the_longest() -> None:
    assert torch.equal(completion_mask(GROUPS), pack(nn.Module(), GROUPS).mask)
