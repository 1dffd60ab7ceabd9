"""The training commands: the purpose of each, its options, and the options that `--help` shows.

Trainers and configurations are named here and not imported, because importing them takes seconds and `--help` does not need them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import boresight
from boresight.cli.options import (
    AdapterFlags,
    DatasetFlags,
    DemonstrationColumns,
    ModelFlags,
    PreferenceColumns,
    PresetFlags,
    RewardFlags,
    StartFlags,
    ToolFlags,
)
from boresight.options import Declaration, declarations
from boresight.trainer.options import DPOOptions, GRPOOptions, RLOOOptions, SFTOptions
from boresight.trainer.presets import PRESETS
from boresight.trainer.training_arguments import with_training_arguments


@dataclass(frozen=True, slots=True)
class Method:
    """One training command."""

    name: str
    help: str
    trainer: str
    """The public name of its trainer."""
    config: str
    """The public name of its configuration."""
    options: type
    """The options that its configuration adds to transformers'."""
    own: tuple[type, ...]
    """Dataclasses of flags that only this kind of method has."""
    learns_from: tuple[tuple[str, ...], ...]
    """The accepted sets of columns of its rows. Flags can map a table to the last one."""
    about_loss: tuple[str, ...]
    """Options of the objective that `--help` shows."""
    examples: tuple[str, ...]
    """Options to start from, which `--help` shows last."""
    recipe: str | None = None
    """The preset that the command applies."""

    @property
    def samples(self) -> bool:
        """Whether it samples completions and learns from them."""
        return RewardFlags in self.own

    @property
    def topic(self) -> str:
        """What `--help` proposes to ask about."""
        return "vllm" if self.samples else "lora"

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Options that are refused, each with its reason."""
        return self.options.unsupported  # pyright: ignore[reportAttributeAccessIssue]

    def config_class(self) -> Any:
        return getattr(boresight, self.config)

    def trainer_class(self) -> Any:
        return getattr(boresight, self.trainer)

    def flags(self) -> tuple[type, ...]:
        """The dataclasses of its options that are not in the configuration."""
        return (ModelFlags, AdapterFlags, DatasetFlags, *self.own, StartFlags)

    @property
    def presets(self) -> tuple[str, ...]:
        """The presets that `--preset` may name."""
        return tuple(name for name in PRESETS if name != "mpo") if PresetFlags in self.own else ()


_MODEL = "--model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct"
_SCORED = f"{_MODEL} --dataset_name geometry --reward_funcs answer_format_reward exact_answer_reward"

_with_pairs = functools.partial(
    Method,
    trainer="DPOTrainer",
    config="DPOConfig",
    options=DPOOptions,
    own=(PreferenceColumns,),
    learns_from=(("chosen", "rejected"), ("prompt", "chosen", "rejected")),
    examples=(f"{_MODEL} --dataset_name pairs.jsonl --image_column photo --train language=lora",),
)
_with_samples = functools.partial(
    Method,
    trainer="GRPOTrainer",
    config="GRPOConfig",
    options=GRPOOptions,
    learns_from=(("prompt",),),
    examples=(f"{_SCORED} --train language=lora",),
)
_ALL = (
    Method(
        name="sft",
        help="imitate demonstrations (supervised fine-tuning)",
        trainer="SFTTrainer",
        config="SFTConfig",
        options=SFTOptions,
        own=(DemonstrationColumns,),
        learns_from=(("messages",), ("text",), ("input_ids",), ("prompt", "completion")),
        about_loss=("assistant_only_loss", "max_length"),
        examples=(
            f"{_MODEL} --dataset_name train.csv --prompt_column question --completion_column answer --train language=lora",
        ),
    ),
    _with_pairs(
        name="dpo",
        help="learn from pairs of answers of which one is preferred",
        about_loss=("loss_type", "loss_weights", "beta", "max_length", "precompute_ref_log_probs"),
    ),
    _with_pairs(
        name="mpo",
        help="DPO plus a quality and a generation loss (mixed preference optimisation)",
        about_loss=("loss_weights", "beta", "max_length", "precompute_ref_log_probs"),
        recipe="mpo",
    ),
    _with_samples(
        name="grpo",
        help="sample several answers, score them, and learn from their comparison",
        own=(RewardFlags, ToolFlags, PresetFlags),
        about_loss=("preset", "loss_type", "beta", "epsilon", "scale_rewards"),
    ),
    _with_samples(
        name="gspo",
        help="GRPO with the importance ratio over whole answers",
        own=(RewardFlags, ToolFlags),
        about_loss=("epsilon", "epsilon_high", "beta", "steps_per_generation"),
        recipe="gspo",
    ),
    Method(
        name="rloo",
        help="sample several answers and compare each with the mean of the others (RLOO)",
        trainer="RLOOTrainer",
        config="RLOOConfig",
        options=RLOOOptions,
        own=(RewardFlags, ToolFlags),
        learns_from=(("prompt",),),
        about_loss=("beta", "epsilon", "normalize_advantages", "reward_clip_range"),
        examples=(_SCORED,),
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


@functools.cache
def options_of(name: str) -> Mapping[str, Declaration]:
    """Every option of a training command by its name."""
    method = METHODS[name]
    flags = [declared for cls in method.flags() for declared in declarations(cls)]
    return {declared.name: declared for declared in (*flags, *with_training_arguments(method.options))}


def first_options(method: Method) -> dict[str, tuple[str, ...]]:
    """The options that `--help` shows: heading → options, in the order of the data flow."""
    own = {declared.name for cls in method.own for declared in declarations(cls)}
    columns = ("completion_column", "chosen_column", "rejected_column", "solution_column")
    sections = {
        "model": ("model_name_or_path", "dtype"),
        "trained parts": ("train", "lr", "use_peft", "lora_r"),
        "data": (
            "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "test_split_size", "prompt_column",
            *(name for name in columns if name in own), "image_column", "system_prompt", "max_pixels",
        ),
        "rollout": ("num_generations", "max_completion_length", "temperature", "use_vllm", "vllm_mode") * method.samples,
        "rewards": ("reward_funcs", "reward_weights") * method.samples,
        "loss": method.about_loss,
        "trainer": (
            "output_dir", "max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size",
            "gradient_accumulation_steps", *("num_prompts_per_step",) * method.samples, "gradient_checkpointing",
            "eval_strategy", "save_steps", "resume_from_checkpoint", "seed", "use_cpu",
        ),
        "report": ("logging_steps", "report_to", *("log_completions",) * method.samples),
        "start": ("config", "accelerate_config", "num_processes"),
    }  # fmt: skip
    return {title: names for title, names in sections.items() if names}
