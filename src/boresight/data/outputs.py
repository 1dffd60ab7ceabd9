"""A processor's outputs, told apart: those with one entry per token, and those of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

NOT_INPUTS = frozenset({"input_ids", "attention_mask", "labels", "offset_mapping", "text_replacement_offsets"})
"""Outputs that are handled on their own, or are no input of a model that predicts."""


def as_tensor(value: Any) -> Tensor | None:
    """A processor's output as a tensor; None if it is no array, such as text. Images of several shapes stay apart and are None too."""
    if isinstance(value, Tensor):
        return value
    try:
        array = numpy.asarray(value)
    except ValueError:  # rows of several lengths
        return None
    return torch.from_numpy(array) if array.dtype.kind in "biuf" else None


def separated(outputs: Mapping[str, Any], length: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Token inputs [P, …] and image tensors among the outputs for one text.

    An output belongs to tokens if it has one integer entry per token and is no ready tensor: the processor is asked for tensors of images
    only. Names decide nothing, except that types of tokens are never an image's.

    Args:
        length: P, tokens of the text.
    """
    token_inputs: dict[str, Tensor] = {}
    vision: dict[str, Tensor] = {}
    for name, value in outputs.items():
        if name in NOT_INPUTS:
            continue
        tensor = as_tensor(value)
        if tensor is None:
            continue
        is_ready = isinstance(value, Tensor) and "token_type" not in name
        if not is_ready and tuple(tensor.shape[:2]) == (1, length) and not tensor.is_floating_point():
            token_inputs[name] = tensor[0]
        else:
            vision[name] = tensor
    return token_inputs, vision
