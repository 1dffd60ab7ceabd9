"""The identity of a run: what decides its result. A checkpoint is only continued by a run with the same identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from boresight.errors import ConfigError

HARMLESS = frozenset({
    # How long it runs.
    "max_steps", "num_train_epochs",
    # Where it is written, and what is written.
    "output_dir", "overwrite_output_dir", "run_name", "project", "resume_from_checkpoint", "save_strategy", "save_steps",
    "save_total_limit", "save_only_model", "save_on_each_node", "logging_strategy", "logging_steps", "logging_first_step",
    "log_on_each_node", "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "report_to", "trackio_space_id",
    "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen", "log_completions", "num_completions_to_print",
    "verdict_steps", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    "skip_memory_metrics", "debug", "do_train", "do_eval", "do_predict",
    # Evaluation, which leaves training as it is.
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "num_generations_eval",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    # What is refused, checked or survived.
    "preflight", "gold_check", "gold_template", "nan_policy", "max_failed_rate", "reward_workers", "reward_timeout",
    # How it is computed. The size of an optimizer step is compared by itself.
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_prompts_per_step", "steps_per_generation",
    "generation_batch_size", "max_tokens_per_pass", "gradient_checkpointing", "gradient_checkpointing_kwargs", "layout",
    "activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading",
    "max_logit_mib", "vision_cache_gib", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_multiprocessing_context", "dataloader_in_order", "ddp_backend", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph", "ddp_timeout", "local_rank", "use_cpu",
    "trust_remote_code", "precompute_ref_log_probs", "precompute_ref_batch_size", "precomputed_ref_path", "average_tokens_across_devices",
    "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_request_timeout", "vllm_group_port",
    "vllm_sync_dir", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_enable_sleep_mode",
})  # fmt: skip
"""Options that a resumed run may change. Any other option decides the result, or would have no effect after resuming, as the
optimizer's options, whose values the checkpoint restores."""

Identity = Mapping[str, Any]
"""Plain values: `method`, `model`, `data`, … and `options`, a mapping."""


def options_of(args: Any) -> dict[str, Any]:
    """A configuration's options as plain values, a set `hub_token` masked."""
    values = args.to_dict()
    # transformers masks whatever ends with _token, set or not; of these only the hub's is a secret.
    masked = {name: getattr(args, name) for name in values if name.endswith("_token")}
    values |= {name: value for name, value in masked.items() if name != "hub_token" or value is None}
    return json.loads(json.dumps(values, default=str, sort_keys=True))


def changed_options(args: Any) -> list[str]:
    """The names of the options that are not as the class sets them, for readers of run.json.

    See `is_changed`.
    """
    values = options_of(args)
    plain = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(args)
    }
    before = json.loads(json.dumps(plain, default=str))
    return [name for name, value in values.items() if name in before and is_changed(name, value, before[name])]


def is_changed(name: str, value: Any, default: Any) -> bool:
    """Whether an option differs from its default because someone set it, as far as the values tell: None, "", [] and False are one nothing,
    since configurations fill in one for the other."""
    return name not in FILLED_IN and value != default and bool(value or default)


FILLED_IN = frozenset({"accelerator_config", "activation_checkpointing", "report_to"})
"""Options that transformers fills in by itself, or boresight from another: `activation_checkpointing` is transformers' newer name for
`gradient_checkpointing`."""


def adapters_of(configs: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's configurations as plain values, without the model that they are for."""
    plain = {name: config.to_dict() for name, config in configs.items()}
    found = json.loads(
        json.dumps(plain, default=lambda value: sorted(map(str, value)) if isinstance(value, set) else str(value))
    )
    ignored = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
    return {name: {key: value for key, value in each.items() if key not in ignored} for name, each in found.items()}


def differences(saved: Identity, now: Identity) -> tuple[list[str], list[str]]:
    """What differs between two identities: what decides the result, and what is harmless. Each is a line "NAME: SAVED → NOW".

    An option that only one of them has, as after an upgrade, is not compared.
    """
    essential = [_line(name, saved[name], now[name]) for name in now if name != "options" and _differ(name, saved, now)]
    before, after = saved.get("options", {}), now.get("options", {})
    changed = [name for name in after if _differ(name, before, after)]
    essential += [_line(name, before[name], after[name]) for name in changed if name not in HARMLESS]
    return essential, [_line(name, before[name], after[name]) for name in changed if name in HARMLESS]


def check_same_run(saved: Identity, now: Identity, where: object) -> list[str]:
    """The harmless differences between a saved run and this one.

    Args:
        where: the checkpoint.

    Raises:
        ConfigError: another difference; the message shows all of them.
    """
    essential, harmless = differences(saved, now)
    if essential:
        lines = "\n".join(f"  {line}" for line in essential)
        raise ConfigError(
            f"{where} belongs to another run (saved → now):\n{lines}\nSet these as they were saved. Or start a new run from its weights: "
            f"pass it as the model, with another output_dir, and without resume_from_checkpoint."
        )
    return [line for line in harmless if line.partition(":")[0] not in QUIET]


QUIET = frozenset({"resume_from_checkpoint", "output_dir", "overwrite_output_dir", "local_rank"})
"""Harmless options that are not worth a line."""


def _differ(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return name in saved and saved[name] != now[name]


def _line(name: str, saved: Any, now: Any) -> str:
    return f"{name}: {_short(saved)} → {_short(now)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
