"""Rows of token ids (SFT): they are learned from as they are, and cannot have images, which only the processor expands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from boresight.data.encode import Encoder
from boresight.data.schema import TOKENS
from boresight.errors import DataError
from boresight.types import Completion, Group, Prompt, Row

IGNORED = -100
"""The label of a token that does not count."""


def demonstration(
    encoder: Encoder,
    row: Row,
    *,
    assistant_only: bool = False,
    completion_only: bool | None = None,
    max_length: int | None = None,
) -> Group:
    """`Encoder.demonstration`, which rows of token ids (`input_ids`) pass by.

    As in TRL, the tokens count whose entry in `labels` is not -100; without `labels`, those that `assistant_masks` and `completion_mask`
    mark; without any of them, all. TRL reads `completion_mask` only with `completion_only_loss=True`, and here it is read unless
    `completion_only` is False. The first token never counts, because nothing predicts it.

    Raises:
        DataError: as `Encoder.demonstration`; or ids are not the model's, a list is of another length, or nothing counts.
    """
    if not is_pretokenised(row):
        return encoder.demonstration(
            row, assistant_only=assistant_only, completion_only=completion_only, max_length=max_length
        )
    where = f"row {row.index}"
    ids = _integers(row, TOKENS)
    _check_ids(ids, row, encoder)
    if assistant_only and row.columns.get("assistant_masks") is None and row.columns.get("labels") is None:
        raise DataError(
            f"{where}: assistant_only_loss=True needs assistant_masks (or labels) beside input_ids. Add the column."
        )
    counted = _counted(row, ids, completion_only)
    truncated = max_length is not None and len(ids) > max_length
    ids, counted = ids[:max_length], [False, *counted[1:max_length]]
    if not any(counted):
        why = (
            f"of its first {max_length} tokens (max_length), none counts"
            if truncated
            else "no token would count in the loss"
        )
        raise DataError(f"{where}: {why}. Drop the row.")
    split = counted.index(True)
    told, said = (torch.tensor(part, dtype=torch.long) for part in (ids[:split], ids[split:]))
    prompt = Prompt(row=row, ids=told, token_types=torch.zeros_like(told), vision={}, unexpanded_ids=told)
    mask = torch.tensor(counted[split:])
    text = encoder.tokenizer.decode(said[mask], skip_special_tokens=True)
    completion = Completion(said, mask, text, truncated=truncated, token_types=torch.zeros_like(said))
    return Group(prompt, (completion,))


def is_pretokenised(row: Row) -> bool:
    """Whether the row is a list of token ids."""
    return TOKENS in row.columns and not row.prompt and row.completions == ("",)


def _counted(row: Row, ids: Sequence[int], completion_only: bool | None) -> list[bool]:
    if row.columns.get("labels") is not None:
        labels = _integers(row, "labels", len(ids))
        if other := [place for place, label in enumerate(labels) if label not in (IGNORED, ids[place])]:
            raise DataError(
                f"row {row.index}: labels[{other[0]}] is {labels[other[0]]}, neither {IGNORED} nor its token in input_ids. Labels are not "
                "shifted."
            )
        return [label != IGNORED for label in labels]
    names = ["assistant_masks"] + ["completion_mask"] * (completion_only is not False)
    masks = [_integers(row, name, len(ids)) for name in names if row.columns.get(name) is not None]
    return [all(bits) for bits in zip(*masks, strict=True)] if masks else [True] * len(ids)


def _integers(row: Row, name: str, length: int | None = None) -> list[int]:
    values: Any = row.columns[name]
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or not all(isinstance(value, int) for value in values):
        raise DataError(f"row {row.index}: {name} is not a list of integers.")
    if length is not None and len(values) != length:
        raise DataError(f"row {row.index}: {name} has {len(values)} entries, and input_ids has {length}.")
    return [int(value) for value in values]


def _check_ids(ids: Sequence[int], row: Row, encoder: Encoder) -> None:
    where = f"row {row.index}"
    if row.images:
        raise DataError(
            f"{where}: input_ids beside images: only the processor can place an image. Give messages instead."
        )
    if not ids:
        raise DataError(f"{where}: input_ids is empty.")
    if other := [id for id in ids if not 0 <= id < encoder.facts.vocab_size]:
        raise DataError(
            f"{where}: the token {other[0]} is not in the model's vocabulary of {encoder.facts.vocab_size}: another tokenizer made the ids."
        )
    if placed := [id for id in ids if id in encoder.facts.modality_ids]:
        raise DataError(
            f"{where}: the token {placed[0]} stands for an image, which only the processor can place. Give messages instead."
        )
