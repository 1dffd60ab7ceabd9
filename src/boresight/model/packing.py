"""Groups laid into one row: `[prompt 1 | its completions | prompt 2 | …]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from boresight.model.positions import Positions, branch_positions, sequence_positions
from boresight.types import Group, Mask


@dataclass(frozen=True, slots=True, eq=False)
class GroupSpan:
    """Where one group lies in a row."""

    start: int
    prompt: int
    """Tokens of the prompt."""
    branches: tuple[int, ...]
    """Tokens of each completion."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRow:
    """Several groups in one row of L tokens, without padding, and where its answers are."""

    spans: tuple[GroupSpan, ...]
    ids: Int[Tensor, "L"]
    positions: Positions
    token_types: Int[Tensor, "L"]
    """As `Prompt.token_types`."""
    predictors: Int[Tensor, "N"]
    """The place in the row whose hidden state predicts each counted token."""
    targets: Int[Tensor, "N"]
    """The id of each counted token."""
    mask: Mask
    """[B, T] true where a token counts; its N true places, row by row, are the order of `predictors` and `targets`."""


def completion_mask(groups: Sequence[Group]) -> Mask:
    """[B, T] the masks of all completions, padded to the longest."""
    masks = [completion.mask for group in groups for completion in group.completions]
    return torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)


def pack(base: nn.Module, groups: Sequence[Group]) -> PackedRow:
    """Lay groups into one row, each branch's positions going on from its own prompt's.

    The first token of every branch is predicted by the prompt's last position, each further one by the token before it.
    """
    ids, positions, types, predictors, targets, spans = [], [], [], [], [], []
    place = 0
    for group in groups:
        prompt, start = group.prompt, place
        lone = group.completions[0] if len(group) == 1 else None
        if lone is not None and lone.token_types is not None:
            # K = 1: images may stand anywhere, so the positions of the whole sequence are the model's own.
            prompt_positions, branch = sequence_positions(base, prompt, lone).split(
                [len(prompt.ids), len(lone.ids)], -1
            )
            branches = [branch]
        else:
            prompt_positions = sequence_positions(base, prompt)
            branches = [branch_positions(prompt_positions, len(completion.ids)) for completion in group.completions]
        ids.append(prompt.ids)
        types.append(prompt.token_types)
        positions.append(prompt_positions)
        place += len(prompt.ids)
        prompt_end = place - 1
        for completion, branch in zip(group.completions, branches, strict=True):
            length = len(completion.ids)
            ids.append(completion.ids)
            types.append(torch.zeros_like(completion.ids) if completion.token_types is None else completion.token_types)
            positions.append(branch)
            before = torch.arange(place - 1, place + length - 1)
            before[:1] = prompt_end
            predictors.append(before[completion.mask])
            targets.append(completion.ids[completion.mask])
            place += length
        spans.append(GroupSpan(start, len(prompt.ids), tuple(len(completion.ids) for completion in group.completions)))
    return PackedRow(
        spans=tuple(spans),
        ids=torch.cat(ids),
        positions=torch.cat(positions, -1),
        token_types=torch.cat(types),
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
        mask=completion_mask(groups),
    )
