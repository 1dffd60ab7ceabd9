from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from transformers import HfArgumentParser, TrainingArguments

from boresight import DPOConfig, GRPOConfig, SFTConfig
from boresight.errors import ConfigError
from boresight.options import declarations
from boresight.trainer.steps import StepPlan
from boresight.trainer.training_arguments import NOTES, RANGES, UNSUPPORTED

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
    "fsdp",
    "fsdp_config",
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
    "remove_unused_columns",  # accepted, and changes nothing
    "use_liger_kernel",  # likewise
}
NEWER = {"activation_checkpointing", "activation_checkpointing_kwargs"}
"""Supported options of releases after the lock's."""


def test_every_option_of_transformers_is_either_heeded_or_refused() -> None:
    known = {option.name for option in fields(TrainingArguments)}
    assert SUPPORTED | UNSUPPORTED.keys() | NEWER & known == known
    assert not SUPPORTED & UNSUPPORTED.keys()


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_old_names_of_options_warn_of_nothing(config: type) -> None:
    """transformers 5.24 renames gradient_checkpointing, which TRL's users and boresight's defaults set."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        chosen, default = config(use_cpu=True, gradient_checkpointing=False), config(use_cpu=True)
    assert not chosen.gradient_checkpointing and not getattr(chosen, "activation_checkpointing", False)
    assert default.gradient_checkpointing and getattr(default, "activation_checkpointing", True)


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
        (GRPOConfig, {"top_p": 1.9}, "top_p=1.9: it must be above 0 and at most 1"),
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
        (GRPOConfig, {"num_iterations": 0}, "num_iterations=0: it must be at least 1"),
        (
            GRPOConfig,
            {"gold_check": "wran"},
            "gold_check='wran' is not one of 'warn', 'error', 'off'. Did you mean 'warn'?",
        ),
        (
            GRPOConfig,
            {"gold_check": "off", "gold_template": "{solution}"},
            "set gold_check='warn' or 'error', or drop it",
        ),
        (GRPOConfig, {"sync_ref_model": True}, "sync_ref_model=True has no effect: set beta above 0"),
        (
            GRPOConfig,
            {"beta": 0.1, "ref_model_sync_steps": 5},
            "ref_model_sync_steps=5 has no effect: set sync_ref_model=True",
        ),
        (
            DPOConfig,
            {"sync_ref_model": True, "ref_model_mixup_alpha": 0.0},
            "ref_model_mixup_alpha=0.0: it must be above 0",
        ),
        (GRPOConfig, {"max_sampling_rounds": 5}, "max_sampling_rounds=5 has no effect: set dynamic_sampling=True"),
        (
            GRPOConfig,
            {"dynamic_sampling": True, "max_sampling_rounds": 1},
            "max_sampling_rounds=1: it must be at least 2",
        ),
        (
            GRPOConfig,
            {"num_completions_to_print": 3},
            "num_completions_to_print=3 has no effect: set log_completions=True",
        ),
        (GRPOConfig, {"vllm_engine_kwargs": "x", "use_vllm": True}, "vllm_engine_kwargs='x' is not a JSON object"),
        (GRPOConfig, {"steps_per_generation": 0}, "steps_per_generation=0: it must be at least 1"),
        (GRPOConfig, {"max_failed_rate": 1.5}, "max_failed_rate=1.5: it must be at least 0 and at most 1"),
        (SFTConfig, {"verdict_steps": -1}, "verdict_steps=-1: it must be at least 0"),
        (
            SFTConfig,
            {"layout": "raws"},
            "layout='raws' is not one of 'auto', 'shared', 'rows', 'plain'. Did you mean 'rows'?",
        ),
        (SFTConfig, {"model_init_kwargs": "[1]"}, "model_init_kwargs='[1]' is not a JSON object"),
        (DPOConfig, {"overlong_pairs": "drop"}, "overlong_pairs='drop' has no effect: set max_length, or drop it"),
        (DPOConfig, {"precompute_ref_batch_size": 2}, "set precompute_ref_log_probs=True"),
        # transformers' own
        (SFTConfig, {"learning_rate": math.nan}, "learning_rate=nan: it must be at least 0"),
        (SFTConfig, {"learning_rate": "1e-5"}, "learning_rate='1e-5' is not a number"),
        (SFTConfig, {"max_steps": -2}, "max_steps=-2: it must be at least -1"),
        (SFTConfig, {"max_steps": 2.5}, "max_steps=2.5 is not an integer"),
        (SFTConfig, {"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: it must be at least 1"),
        (SFTConfig, {"gradient_accumulation_steps": True}, "gradient_accumulation_steps=True is not a number"),
        (SFTConfig, {"weight_decay": -0.1}, "weight_decay=-0.1: it must be at least 0"),
        (SFTConfig, {"adam_beta1": 1.0}, "adam_beta1=1.0: it must be at least 0 and below 1"),
        (SFTConfig, {"warmup_steps": math.inf}, "warmup_steps=inf: it must be at least 0"),
        (SFTConfig, {"gradient_checkpointing": "false"}, "gradient_checkpointing='false' is neither True nor False"),
        (SFTConfig, {"use_cpu": "no"}, "use_cpu='no' is neither True nor False"),
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


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": -1},
        {"save_steps": 0.1, "logging_steps": 0.5},
        {"save_steps": 5.0},
        {"eval_strategy": "steps", "eval_steps": 0.25},
        {"warmup_steps": 0.03},
        {"warmup_steps": 3},
        {"max_grad_norm": 0},
        {"max_grad_norm": None},
        {"logging_strategy": "no", "logging_steps": 0},
        {"learning_rate": 0},
        {"num_train_epochs": 0.5},
        {"learning_rate": np.float32(1e-3), "seed": np.int64(3)},
        {"save_total_limit": 0},
        {"disable_tqdm": None, "tf32": None},
        {"accelerator_config": {"even_batches": False}},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycles": 2}'},
        {"report_to": "none"},
        {"trackio_static_space_id": "me/space"},
        {"include_num_input_tokens_seen": True},
    ],
)
@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_what_transformers_accepts_is_accepted(config: Any, options: dict[str, Any]) -> None:
    made = config(use_cpu=True, **options)
    assert dataclasses.replace(made).max_steps == made.max_steps  # a copy, as trainers make of it


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_an_explicit_default_is_never_an_error(config: Any) -> None:
    defaults = {declared.name: declared.default for declared in declarations(config)}
    assert config(**defaults) == config()


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_every_need_names_an_option_of_the_configuration(config: Any) -> None:
    known = {declared.name for declared in declarations(config)}
    assert {name for declared in declarations(config) for need in declared.needs for name in need.options} <= known


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_every_number_has_a_range(config: Any) -> None:
    """NaN, infinities and negative counts are refused for all of ours. Those of losses and advantages look for themselves."""
    theirs = {option.name for option in fields(TrainingArguments)}
    open_ended = [
        declared.name
        for declared in declarations(config)
        if {int, float} & {*declared.elements}
        and declared.range is None
        and declared.name not in RANGES
        and declared.ignored is None
    ]
    left = {"save_total_limit", "local_rank", *UNSUPPORTED}
    assert [name for name in open_ended if name in theirs and name not in left] == []
    assert [
        declared.name
        for declared in declarations(config)
        if declared.name in open_ended and declared.name not in theirs and declared.heading not in ("loss", "advantage")
    ] == []


def test_notes_are_of_options_that_there_are() -> None:
    assert NOTES.keys() | UNSUPPORTED.keys() <= {option.name for option in fields(TrainingArguments)}


@pytest.mark.parametrize("config", [SFTConfig, DPOConfig, GRPOConfig])
def test_transformers_own_parser_reads_it(config: Any) -> None:
    words = ["--use_cpu", "--layout", "rows", "--max_tokens_per_pass", "64", "--chat_template_kwargs", '{"a": 1}']
    (read,) = HfArgumentParser(config).parse_args_into_dataclasses(words)
    assert read == config(use_cpu=True, layout="rows", max_tokens_per_pass=64, chat_template_kwargs={"a": 1})


def test_trls_booleans_of_scale_rewards() -> None:
    assert [GRPOConfig(use_cpu=True, scale_rewards=given).scale_rewards for given in (True, False, "batch")] == [
        "group",
        "none",
        "batch",
    ]  # pyright: ignore[reportArgumentType]
