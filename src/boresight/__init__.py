"""Align vision-language models: SFT, DPO, MPO, GRPO and GSPO.

Nothing heavy is loaded until a name is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names
from boresight.threads import let_waiting_threads_sleep

if TYPE_CHECKING:
    from boresight.cli.scripts import (
        ModelConfig,
        ScriptArguments,
        TrlParser,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )
    from boresight.data.conversational import (
        apply_chat_template,
        extract_prompt,
        is_conversational,
        maybe_extract_prompt,
        prepare_multimodal_messages,
        unpair_preference_dataset,
    )
    from boresight.data.mixture import DatasetConfig, DatasetMixtureConfig, get_dataset
    from boresight.trainer.config import DPOConfig, SFTConfig
    from boresight.trainer.dpo import DPOTrainer
    from boresight.trainer.grpo import GRPOTrainer, RLOOTrainer
    from boresight.trainer.grpo_config import GRPOConfig, RLOOConfig
    from boresight.trainer.sft import SFTTrainer

__version__ = "0.1.0"

let_waiting_threads_sleep()  # here, because it must come before torch

_HOMES = {
    "DPOConfig": "trainer.config",
    "DPOTrainer": "trainer.dpo",
    "GRPOConfig": "trainer.grpo_config",
    "GRPOTrainer": "trainer.grpo",
    "RLOOConfig": "trainer.grpo_config",
    "RLOOTrainer": "trainer.grpo",
    "SFTConfig": "trainer.config",
    "SFTTrainer": "trainer.sft",
    "DatasetConfig": "data.mixture",
    "DatasetMixtureConfig": "data.mixture",
    "get_dataset": "data.mixture",
    "apply_chat_template": "data.conversational",
    "extract_prompt": "data.conversational",
    "is_conversational": "data.conversational",
    "maybe_extract_prompt": "data.conversational",
    "prepare_multimodal_messages": "data.conversational",
    "unpair_preference_dataset": "data.conversational",
    "ModelConfig": "cli.scripts",
    "ScriptArguments": "cli.scripts",
    "TrlParser": "cli.scripts",
    "get_kbit_device_map": "cli.scripts",
    "get_peft_config": "cli.scripts",
    "get_quantization_config": "cli.scripts",
}

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DatasetConfig",
    "DatasetMixtureConfig",
    "GRPOConfig",
    "GRPOTrainer",
    "ModelConfig",
    "RLOOConfig",
    "RLOOTrainer",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "TrlParser",
    "apply_chat_template",
    "extract_prompt",
    "get_dataset",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "is_conversational",
    "maybe_extract_prompt",
    "prepare_multimodal_messages",
    "unpair_preference_dataset",
]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
