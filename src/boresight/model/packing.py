"""Groups packed into one row: `[prompt 1 | its completions | prompt 2 | …]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from boresight.model.positions import Positions, positions_within, sequence_positions
from boresight.types import Group, Mask


@dataclass(frozen=True, slots=True, eq=False)
class GroupSpan:
    """The position of one group in a row."""

    start: int
    prompt: int
    """Tokens of the prompt."""
    branches: tuple[int, ...]
    """Tokens of each completion."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRow:
    """Several groups in one row of L tokens, without padding, and the tokens to predict."""

    spans: tuple[GroupSpan, ...]
    ids: Int[Tensor, "L"]
    positions: Positions
    token_types: Int[Tensor, "L"]
    """As `Prompt.token_types`."""
    predictors: Int[Tensor, "N"]
    """The index in the row whose hidden state predicts each counted token."""
    targets: Int[Tensor, "N"]
    """The id of each counted token."""
    mask: Mask
    """[B, T] true where a token counts; `predictors` and `targets` follow the order of its N true entries, row by row."""


def completion_mask(groups: Sequence[Group]) -> Mask:
    """[B, T] masks of all completions, padded to the longest."""
    masks = [completion.mask for group in groups for completion in group.completions]
    return torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)


def pack(base: nn.Module, groups: Sequence[Group]) -> PackedRow:
    """Pack groups into one row. Each branch's positions continue those of its own prompt.

    The prompt's last token predicts the first token of every branch. Each further token is predicted by the token before it.
    """
    ids, positions, types, predictors, targets, spans = [], [], [], [], [], []
    place = 0
    for group in groups:
        prompt, start = group.prompt, place
        lone = group.completions[0] if len(group) == 1 else None
        if lone is not None and lone.token_types is not None:
            # A demonstration's images are all the prompt's, also those that the model would look for in vain in the prompt alone.
            prompt_positions, branch = sequence_positions(base, prompt, lone).split(
                [len(prompt.ids), len(lone.ids)], -1
            )
            branches = [branch]
        else:
            prompt_positions = sequence_positions(base, prompt)
            branches = [positions_within(base, prompt, prompt_positions, each) for each in group.completions]
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
