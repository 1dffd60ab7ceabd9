"""The adapter's configuration, built from flags."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from boresight.cli.command import Command
from boresight.cli.options import AdapterFlags
from boresight.model.parts import is_pattern


def peft_config(command: Command) -> Any:
    """The adapter's configuration, or None if the weights themselves are trained."""
    return lora_config(command.adapter) if command.adapter.use_peft else None


def lora_config(adapter: AdapterFlags) -> Any:
    """PEFT's configuration. Which parts of the model its layers are in, the trainer decides: by `train`, else the language model alone."""
    targets: Any = [name for word in adapter.lora_target_modules or [] if (name := word.strip(", "))]
    if len(targets) == 1 and (targets[0] == "all-linear" or is_pattern(targets[0])):
        targets = targets[0]
    return LoraConfig(
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=targets or None,
        target_parameters=adapter.lora_target_parameters,
        modules_to_save=adapter.lora_modules_to_save,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        task_type="CAUSAL_LM",
    )
