"""Align vision-language models: SFT, DPO, MPO, GRPO and GSPO.

Nothing heavy is loaded until a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boresight.trainer.config import DPOConfig, SFTConfig
    from boresight.trainer.dpo import DPOTrainer
    from boresight.trainer.grpo import GRPOTrainer
    from boresight.trainer.grpo_config import GRPOConfig
    from boresight.trainer.sft import SFTTrainer

__version__ = "0.1.0"

_HOMES = {
    "DPOConfig": "trainer.config",
    "DPOTrainer": "trainer.dpo",
    "GRPOConfig": "trainer.grpo_config",
    "GRPOTrainer": "trainer.grpo",
    "SFTConfig": "trainer.config",
    "SFTTrainer": "trainer.sft",
}

__all__ = ["DPOConfig", "DPOTrainer", "GRPOConfig", "GRPOTrainer", "SFTConfig", "SFTTrainer"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'boresight' has no attribute {name!r}")
    return getattr(importlib.import_module(f"boresight.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
