"""What the checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from boresight.data.encode import Encoder
from boresight.model.part_options import PartPlan
from boresight.types import ModelFacts


@dataclass(frozen=True, slots=True)
class SetUp:
    """A run as it is before its first step."""

    args: Any
    """The method's configuration."""
    model: nn.Module
    """The policy, with its adapter, trainable as it will be."""
    encoder: Encoder
    facts: ModelFacts
    parts: PartPlan
    peft_config: Any = None
    """As the user passed it."""
    max_tokens: int | None = None
    """Most tokens of a row: its prompt and any completions. None: not all rows were measured."""

    @property
    def output_dir(self) -> Path:
        return Path(str(self.args.output_dir))
