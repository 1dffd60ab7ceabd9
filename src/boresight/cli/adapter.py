"""The adapter that flags describe."""

from __future__ import annotations

from typing import Any

from boresight.cli.options import ModelOptions
from boresight.families import UNKNOWN


def lora_config(model: ModelOptions) -> Any:
    """PEFT's configuration. Without target modules every linear layer of the language model gets an adapter, vision tower and projector
    get none, so that an image's features can be kept."""
    from peft import LoraConfig

    targets: Any = [name for word in model.lora_target_modules or [] if (name := word.strip(", "))]
    return LoraConfig(
        r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        target_modules=targets[0] if len(targets) == 1 else targets or "all-linear",
        exclude_modules=None if targets else UNKNOWN.not_language,
        target_parameters=model.lora_target_parameters,
        modules_to_save=model.lora_modules_to_save,
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
        task_type="CAUSAL_LM",
    )
