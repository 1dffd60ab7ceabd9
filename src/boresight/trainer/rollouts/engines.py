"""The engine that samples from the policy, built from the options."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.errors import ConfigError
from boresight.model.adapter_export import PolicyAdapter
from boresight.model.export import PolicyWeights
from boresight.model.forward import GroupForward
from boresight.modules import unwrap
from boresight.rollout.synced import SyncedSampler
from boresight.rollout.vllm.adapter import lora_options
from boresight.rollout.vllm.child import ChildEngine
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import LocalEngine, check_sleep
from boresight.rollout.vllm.options import VLLMOptions
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.server import ServerEngine, address
from boresight.trainer.checks import Extent
from boresight.trainer.grpo_config import GRPOConfig
from boresight.types import TrainingHooks


def engine_sampler(
    args: GRPOConfig, policy: GroupForward, encoder: Encoder, extent: Extent, training: TrainingHooks
) -> SyncedSampler:
    """The sampler of `use_vllm`. Another engine would be built here, with its own folder next to `rollout/vllm`.

    Args:
        args: the options.
        policy: the forward of the model being trained.
        encoder: the encoder of the trainer's prompts.
        extent: the largest sizes of the rows, which determine the engine's limits.
        training: the sampler's interface to training.
    """
    regex = args.vllm_structured_outputs_regex
    alone = args.vllm_lora_sync == "adapter"
    adapter = PolicyAdapter(policy.outer) if alone else None
    save = partial(save_without_weights, policy, encoder)
    options = _engine_options(args, extent) | (lora_options(adapter) if adapter else {})
    sampler = VLLMSampler(
        _engine(args, save, options),
        PolicyWeights(policy.outer, adapters=not alone),
        policy.facts,
        encoder.tokenizer,
        decode_image=decode,
        name=broadcast_object_list([secrets.token_hex(4)])[0],
        sleeps=args.vllm_enable_sleep_mode,
        structured={"regex": regex} if regex else None,
        adapter=adapter,
        # Ranks have equal weights, so one of them sends the weights to the shared server.
        pushes=args.vllm_mode == "colocate" or args.process_index == 0,
    )
    return SyncedSampler(sampler, training, distribution_differs=bool(regex))


def _engine(args: GRPOConfig, save: Callable[[Path], None], options: dict[str, Any]) -> Engine:
    calls = {
        "timeout_s": args.vllm_server_timeout,
        "request_timeout_s": args.vllm_request_timeout,
        "sync_dir": args.vllm_sync_dir,
    }
    if args.vllm_mode == "server":
        named = {option.name: getattr(args, option.name) for option in fields(VLLMOptions)}
        return ServerEngine(address(named), group_port=args.vllm_group_port, **calls)
    if args.vllm_model_impl == "transformers":
        log = Path(str(args.output_dir)) / f"vllm{args.process_index or ''}.log"
        return ChildEngine(save, options, log=log, **calls)
    return LocalEngine(save, **options)


def _engine_options(args: GRPOConfig, extent: Extent) -> dict[str, Any]:
    """vLLM's engine arguments for an engine on the training process's device; empty for a server, which has its own."""
    if args.vllm_mode == "server":
        return {}
    if args.vllm_enable_sleep_mode:
        check_sleep()
    if args.world_size % args.vllm_tensor_parallel_size:
        raise ConfigError(
            f"vllm_tensor_parallel_size={args.vllm_tensor_parallel_size} training processes share an engine, and {args.world_size} are "
            "running: start a multiple (accelerate launch --num_processes …), or lower vllm_tensor_parallel_size."
        )
    options: dict[str, Any] = {
        "dtype": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "model_impl": args.vllm_model_impl,
        "enable_sleep_mode": args.vllm_enable_sleep_mode,
        "seed": args.seed,
    }
    if extent.max_images is not None:
        options["limit_mm_per_prompt"] = {"image": extent.max_images, "video": 0}
    if args.vllm_max_model_length is not None:
        options["max_model_len"] = args.vllm_max_model_length
    elif extent.max_prompt_tokens is not None:
        options["max_model_len"] = extent.max_prompt_tokens + args.max_completion_length
    if args.world_size > 1 and args.vllm_model_impl != "transformers":
        # vLLM runs an engine in every process; those of a tensor-parallel group work together.
        options |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": args.vllm_tensor_parallel_size,
        }
    given: Any = args.vllm_engine_kwargs or {}
    return options | given


def save_without_weights(policy: GroupForward, encoder: Encoder, folder: Path) -> None:
    """Save the files that an engine reads in addition to weights: config, generation config, and the trainer's own processor."""
    base = unwrap(policy.outer)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    encoder.processor.save_pretrained(folder)
