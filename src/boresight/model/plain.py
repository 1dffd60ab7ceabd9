"""The layout of last resort: the model's own forward for every completion, whose logits are taken.

It repeats prompt and images for each completion, one row at a time, and is right for any model that predicts the next token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from boresight.model.head import OwnLogits
from boresight.model.layouts import Layout, Predictions
from boresight.model.packing import completion_mask
from boresight.model.routers import row_counts
from boresight.own_forward import completion_tensors, own_logits
from boresight.types import Group, LayoutName


class PlainLayout(Layout):
    """One unpadded row for each completion through the model's own forward, with all of its processor's tensors."""

    name: ClassVar[LayoutName] = "plain"
    takes_features: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel) -> None:
        head: Any = model.get_output_embeddings()
        super().__init__(model, OwnLogits(len(head.weight)))

    def token_counts(self, groups: Sequence[Group]) -> Tensor:
        return row_counts(groups, padded=False)

    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        logits, targets = [], []
        for group in groups:
            for completion in group.completions:
                tensors, ids = completion_tensors(self.model, group.prompt, completion)
                every = own_logits(self.model, tensors, ids, num_last=len(completion.ids) + 1)[:-1]
                logits.append(every[completion.mask.to(every.device)])
                targets.append(completion.ids[completion.mask])
        device = logits[0].device
        return Predictions(torch.cat(logits), torch.cat(targets).to(device), completion_mask(groups).to(device))
