"""A DPO or MPO step of groups of two, made of boresight's own rooms: until its trainer is there to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import ProcessorMixin

from boresight.data.encode import Encoder
from boresight.data.sources import load_rows
from boresight.loss.preference import completion_logps, preference_loss
from boresight.loss.preference_config import PreferenceLossConfig
from boresight.model.forward import GroupForward
from boresight.model.load import model_facts
from boresight.model.reference import Reference
from boresight.types import Group


class PairStep:
    """Reference pass, forward and backward of pairs: what `DPOTrainer.training_step` does."""

    def __init__(
        self, model: nn.Module, processor: ProcessorMixin, config: PreferenceLossConfig, train_dataset: Any
    ) -> None:
        facts = model_facts(model, processor)
        self.config = config
        self.train_dataset = load_rows(train_dataset)
        self.encoder = Encoder(processor, facts=facts)
        self.policy = GroupForward(model, facts)
        self.reference = Reference(self.policy)

    def training_step(self, model: nn.Module, groups: Sequence[Group], _: None = None) -> None:
        model.train()
        behind = self.reference(groups)
        stats = self.policy(groups)
        reference = completion_logps(behind.logp, behind.mask)
        loss = preference_loss(self.config, stats.logp, reference, stats.mask, torch.tensor(float(len(groups)))).loss
        loss.backward()
