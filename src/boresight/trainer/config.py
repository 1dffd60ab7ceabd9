"""What every trainer's configuration has in common.

A configuration is `transformers.TrainingArguments` with the options of the rooms beside it, flat, under TRL's names. An unknown option is
an error with the nearest name; so is an option that this trainer would not heed.
"""

from __future__ import annotations

import functools
import json
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import torch
from transformers import TrainingArguments

from boresight.data.options import DataConfig
from boresight.errors import ConfigError, nearest
from boresight.model.options import ModelConfig
from boresight.report.options import ReportConfig

Config = TypeVar("Config", bound=type)

UNSUPPORTED = {
    "auto_find_batch_size": "a step is cut into micro-batches by itself",
    "batch_eval_metrics": "metrics are sums over groups, whatever the batches",
    "deepspeed": "it is not tried yet; use DDP",
    "enable_jit_checkpoint": "it is not tried yet",
    "eval_accumulation_steps": "evaluation keeps no predictions",
    "eval_do_concat_batches": "evaluation keeps no predictions",
    "eval_use_gather_object": "evaluation keeps no predictions",
    "fp16_full_eval": "evaluation runs as training does",
    "bf16_full_eval": "evaluation runs as training does",
    "fsdp": "it is not tried yet; use DDP",
    "fsdp_config": "it is not tried yet; use DDP",
    "include_for_metrics": "evaluation keeps no predictions",
    "label_names": "groups carry their own labels",
    "label_smoothing_factor": "it would change the objective; DPOConfig has label_smoothing of its own",
    "length_column_name": "micro-batches are cut by the tokens that groups really have",
    "liger_kernel_config": "the language-model head is chunked already",
    "neftune_noise_alpha": "noise on a shared prompt is not the noise on its repetitions",
    "parallelism_config": "it is not tried yet; use DDP",
    "prediction_loss_only": "evaluation keeps no predictions",
    "remove_unused_columns": "every column reaches the reward functions",
    "torch_compile": "it is not tried yet",
    "torch_compile_backend": "it is not tried yet",
    "torch_compile_mode": "it is not tried yet",
    "torch_empty_cache_steps": "it is not tried yet",
    "train_sampling_strategy": "rows are drawn whole optimizer steps at a time",
    "use_liger_kernel": "the language-model head is chunked already",
}
"""Options of TrainingArguments that no boresight trainer heeds, and why."""

NOTHING_SAMPLED = dict.fromkeys(("log_completions", "num_completions_to_print"), "it samples no completions")
"""Options that mean nothing to a trainer which learns from what others wrote."""


def default_of(option: Field[Any]) -> Any:
    """The value an option has when nobody sets it."""
    return option.default_factory() if option.default_factory is not MISSING else option.default


def strict(cls: Config) -> Config:
    """A dataclass that answers an unknown option with the nearest known one."""
    init = cls.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        known = [option.name for option in fields(cls)]
        for name in options.keys() - known:
            raise ConfigError(f"{cls.__name__} has no option {name!r}.{nearest(name, known)}")
        init(self, *args, **options)

    cls.__init__ = checked
    return cls


@dataclass
class TrainerConfig(DataConfig, ModelConfig, ReportConfig, TrainingArguments):
    """Options of every trainer. Defaults that differ from transformers' are TRL's."""

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED

    output_dir: str | None = field(
        default="trainer_output", metadata={"help": "The run folder: checkpoints, completions, images, metrics."}
    )
    bf16: bool | None = field(  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
        default=None, metadata={"help": "Compute in bfloat16. None: where the hardware has it (CUDA; never on a CPU)."}
    )
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Recompute activations in the backward pass to save memory."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many optimizer steps."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay False: reward functions receive every column."}
    )
    dataloader_pin_memory: bool = field(
        default=False, metadata={"help": "Groups are moved when they are packed, so pinning helps nothing."}
    )
    max_tokens_per_pass: int | None = field(
        default=None,
        metadata={
            "help": "Cut a step into micro-batches of at most so many tokens, counted as they are packed. None: of as many groups as "
            "per_device_train_batch_size asks for."
        },
    )

    def __post_init__(self) -> None:
        self.output_dir = self.output_dir or "trainer_output"
        if self.bf16 is None:
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = has_bf16 and not self.fp16 and not self.use_cpu  # pyright: ignore[reportIncompatibleVariableOverride]
        for name in ("model_init_kwargs", "chat_template_kwargs"):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, json.loads(value))
        if self.verdict_steps < 0:
            raise ConfigError(f"verdict_steps={self.verdict_steps} must be 0 (never) or more.")
        self._refuse_unsupported()
        super().__post_init__()

    def _refuse_unsupported(self) -> None:
        for option in fields(self):
            if option.name in self.unsupported and getattr(self, option.name) != default_of(option):
                raise ConfigError(
                    f"{type(self).__name__} does not support {option.name}={getattr(self, option.name)!r}: "
                    f"{self.unsupported[option.name]}. Leave it at {default_of(option)!r}."
                )
