from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from transformers import TrainingArguments

from boresight import GRPOConfig, SFTConfig
from boresight.errors import ConfigError
from boresight.trainer.config import UNSUPPORTED
from boresight.trainer.steps import StepPlan

SUPPORTED = {
    "output_dir",
    "per_device_train_batch_size",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim_target_modules",
    "gradient_accumulation_steps",
    "average_tokens_across_devices",
    "max_grad_norm",
    "bf16",
    "fp16",
    "tf32",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "use_cache",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_on_each_node",
    "logging_nan_inf_filter",
    "include_num_input_tokens_seen",
    "log_level",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "per_device_eval_batch_size",
    "eval_on_start",
    "save_only_model",
    "save_strategy",
    "save_steps",
    "save_on_each_node",
    "save_total_limit",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "ignore_data_skip",
    "restore_callback_states_from_checkpoint",
    "full_determinism",
    "seed",
    "data_seed",
    "use_cpu",
    "accelerator_config",
    "dataloader_drop_last",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "ddp_backend",
    "ddp_timeout",
    "debug",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "resume_from_checkpoint",
    "local_rank",
}


def test_every_option_of_transformers_is_either_heeded_or_refused() -> None:
    known = {option.name for option in fields(TrainingArguments)}
    assert SUPPORTED | UNSUPPORTED.keys() == known
    assert not SUPPORTED & UNSUPPORTED.keys()


@pytest.mark.parametrize("config", [SFTConfig, GRPOConfig])
def test_every_option_is_documented(config: type) -> None:
    assert not [
        option.name for option in fields(config) if option.name not in SUPPORTED and not option.metadata.get("help")
    ]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SFTConfig, {"assistant_only": True}, "no option 'assistant_only'. Did you mean 'assistant_only_loss'?"),
        (GRPOConfig, {"epsilon_hi": 0.3}, "Did you mean 'epsilon_high'?"),
        (SFTConfig, {"label_smoothing_factor": 0.1}, "does not support label_smoothing_factor=0.1"),
        (GRPOConfig, {"top_p": 0.9}, "does not support top_p=0.9"),
        (GRPOConfig, {"num_generations": 1}, "at least 2"),
        (GRPOConfig, {"num_generations": 3}, "Nearest: num_prompts_per_step=3, or a product of 9"),
        (GRPOConfig, {"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "not whole optimizer steps"),
        (GRPOConfig, {"steps_per_generation": 2, "generation_batch_size": 16}, "set one of them"),
        (GRPOConfig, {"generation_batch_size": 12}, "multiple of the 8 completions"),
        (
            GRPOConfig,
            {"num_prompts_per_step": 3, "gradient_accumulation_steps": 2},
            "leave gradient_accumulation_steps out",
        ),
        (GRPOConfig, {"loss_type": "dapo", "importance_sampling_level": "sequence"}, "leave loss_type unset"),
        (GRPOConfig, {"temperature": -1.0}, "temperature"),
        (GRPOConfig, {"num_iterations": 0}, "at least 1"),
    ],
)
def test_bad_options(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "plan"),
    [
        ({}, StepPlan(1, 1)),
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 3}, StepPlan(6, 2)),
        # Fewer completions at a time than a group has: a pass holds one group.
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, StepPlan(1, 1)),
        # The article's GSPO recipe: four micro-batches a generation, each an optimizer step.
        ({"steps_per_generation": 4}, StepPlan(1, 1, 4)),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2}, StepPlan(2, 1, 2)),
        # Two generations within one optimizer step see the same weights: they are one.
        ({"steps_per_generation": 1, "gradient_accumulation_steps": 2}, StepPlan(2, 1, 1)),
        ({"generation_batch_size": 24, "num_iterations": 2}, StepPlan(1, 1, 3, 2)),
        ({"num_prompts_per_step": 5, "num_generations": 4}, StepPlan(5, 2)),
    ],
)
def test_step_arithmetic(options: dict[str, Any], plan: StepPlan) -> None:
    assert GRPOConfig(**options).step_plan() == plan


def test_device_and_dtype_need_no_flag() -> None:
    import torch

    assert SFTConfig().bf16 is (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
