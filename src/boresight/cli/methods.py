"""The training commands: what each is for, which options it has, and which of them people use first."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boresight.cli import TRAINING
from boresight.cli.options import (
    DatasetOptions,
    DemonstrationColumns,
    ModelOptions,
    PreferenceColumns,
    PresetOptions,
    RewardOptions,
    StartOptions,
)


@dataclass(frozen=True, slots=True)
class Method:
    """One training command."""

    help: str
    trainer: str
    """Its trainer among boresight's public names."""
    config: str
    """Its configuration among boresight's public names."""
    own: tuple[type, ...]
    """Dataclasses of options that only this kind of method has."""
    learns_from: tuple[tuple[str, ...], ...]
    """Columns of its rows, one way or another; the last is what flags can map a table to."""
    about_loss: tuple[str, ...]
    """Options of the objective that `--help` shows."""
    recipe: str | None = None
    """The preset that the command stands for."""

    def config_class(self) -> Any:
        import boresight

        return getattr(boresight, self.config)

    def trainer_class(self) -> Any:
        import boresight

        return getattr(boresight, self.trainer)

    def classes(self) -> tuple[type, ...]:
        """The dataclasses of all its options."""
        return (ModelOptions, DatasetOptions, *self.own, StartOptions, self.config_class())

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets that `--preset` may name."""
        if PresetOptions not in self.own:
            return ()
        presets = importlib.import_module("boresight.trainer.presets").PRESETS
        return tuple(name for name in presets if name != "mpo")


_POLICY = (
    "num_generations", "max_completion_length", "temperature", "use_vllm", "vllm_mode",
)  # fmt: skip

METHODS: Mapping[str, Method] = {
    "sft": Method(
        TRAINING["sft"],
        "SFTTrainer",
        "SFTConfig",
        (DemonstrationColumns,),
        (("messages",), ("prompt", "completion")),
        ("assistant_only_loss", "max_length"),
    ),
    "dpo": Method(
        TRAINING["dpo"],
        "DPOTrainer",
        "DPOConfig",
        (PreferenceColumns,),
        (("chosen", "rejected"), ("prompt", "chosen", "rejected")),
        ("loss_type", "loss_weights", "beta", "max_length", "precompute_ref_log_probs"),
    ),
    "mpo": Method(
        TRAINING["mpo"],
        "DPOTrainer",
        "DPOConfig",
        (PreferenceColumns,),
        (("chosen", "rejected"), ("prompt", "chosen", "rejected")),
        ("loss_weights", "beta", "max_length", "precompute_ref_log_probs"),
        recipe="mpo",
    ),
    "grpo": Method(
        TRAINING["grpo"],
        "GRPOTrainer",
        "GRPOConfig",
        (RewardOptions, PresetOptions),
        (("prompt",),),
        ("preset", "loss_type", "beta", "epsilon", "scale_rewards"),
    ),
    "gspo": Method(
        TRAINING["gspo"],
        "GRPOTrainer",
        "GRPOConfig",
        (RewardOptions,),
        (("prompt",),),
        ("epsilon", "epsilon_high", "beta", "steps_per_generation"),
        recipe="gspo",
    ),
}


def first_options(method: Method) -> dict[str, tuple[str, ...]]:
    """What `--help` shows: heading → options, in the order of causation."""
    samples = RewardOptions in method.own
    columns = ("prompt_column", "completion_column", "chosen_column", "rejected_column", "solution_column")
    known = {name for cls in method.own for name in cls.__dataclass_fields__}  # pyright: ignore[reportAttributeAccessIssue]
    sections = {
        "model": ("model_name_or_path", "dtype"),
        "adapter (LoRA)": ("use_peft", "lora_r", "lora_alpha", "lora_target_modules"),
        "data": (
            "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "test_split_size",
            *(name for name in columns if name == "prompt_column" or name in known),
            "image_column", "system_prompt", "max_pixels",
        ),
        "rollout": _POLICY if samples else (),
        "rewards": ("reward_funcs", "reward_weights") if samples else (),
        "loss": method.about_loss,
        "trainer": (
            "output_dir", "max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size",
            "gradient_accumulation_steps", *(("num_prompts_per_step",) if samples else ()), "gradient_checkpointing",
            "eval_strategy", "save_steps", "resume_from_checkpoint", "seed", "use_cpu",
        ),
        "report": ("logging_steps", "report_to", *(("log_completions",) if samples else ())),
        "start": ("config", "accelerate_config", "num_processes"),
    }  # fmt: skip
    return {title: names for title, names in sections.items() if names}
