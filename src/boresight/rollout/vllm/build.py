"""vLLM's engine and sampler, built from the options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from boresight.errors import ConfigError
from boresight.rollout.several import GatheredOnce, SeveralEngines
from boresight.rollout.synced import SyncedEngine
from boresight.rollout.vllm.adapter import lora_options
from boresight.rollout.vllm.child import ChildEngine
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.local import LocalEngine, check_sleep
from boresight.rollout.vllm.options import VLLMOptions
from boresight.rollout.vllm.sampler import VLLMSampler
from boresight.rollout.vllm.server import ServerEngine, addresses
from boresight.sampling import Adapter, EngineInputs, Weights


def vllm_engine(inputs: EngineInputs, options: VLLMOptions) -> SyncedEngine:
    """The engine that the options name, with the policy's weights; or several servers as one.

    Raises:
        ConfigError: the engine cannot serve this policy on these ranks.
        EngineError: the engine did not start.
    """
    alone = options.vllm_lora_sync == "adapter"
    adapter = inputs.adapter() if alone else None
    weights = inputs.weights(not alone)
    engines = list(_engines(inputs, options, _engine_arguments(inputs, options, adapter)))
    if len(engines) == 1:
        return _sampler(engines[0], weights, adapter, inputs, options)
    shared = GatheredOnce(weights)
    return SeveralEngines(
        [_sampler(engine, shared, adapter, inputs, options) for engine in engines],
        rank=inputs.rank,
        timeout_s=options.vllm_server_timeout,
        synced=shared.forget,
    )


def _sampler(
    engine: Engine, weights: Weights, adapter: Adapter | None, inputs: EngineInputs, options: VLLMOptions
) -> VLLMSampler:
    regex = options.vllm_structured_outputs_regex
    return VLLMSampler(
        engine,
        weights,
        inputs.facts,
        inputs.tokenizer,
        decode_image=inputs.decode_image,
        name=inputs.run,
        sleeps=options.vllm_enable_sleep_mode,
        structured={"regex": regex} if regex else None,
        adapter=adapter,
        renews=options.vllm_in_flight_sync,
        # Ranks have equal weights, so one of them sends the weights to the shared servers.
        pushes=options.vllm_mode == "colocate" or inputs.rank == 0,
    )


def _engines(inputs: EngineInputs, options: VLLMOptions, arguments: dict[str, Any]) -> Iterator[Engine]:
    calls = {
        "timeout_s": options.vllm_server_timeout,
        "request_timeout_s": options.vllm_request_timeout,
        "sync_dir": options.vllm_sync_dir,
    }
    if options.vllm_mode == "server":
        urls = addresses(options)
        for number, url in enumerate(urls):
            engine = ServerEngine(url, group_port=options.vllm_group_port + number, **calls)
            # Where other servers go on, nothing waits for this one after the start.
            engine.client.waits = len(urls) == 1
            yield engine
    elif options.vllm_model_impl == "transformers":
        yield ChildEngine(inputs.save, arguments, log=inputs.output_dir / f"vllm{inputs.rank or ''}.log", **calls)
    else:
        yield LocalEngine(inputs.save, **arguments)


def _engine_arguments(inputs: EngineInputs, options: VLLMOptions, adapter: Adapter | None) -> dict[str, Any]:
    """vLLM's engine arguments for an engine on the training process's device; empty for a server, which has its own."""
    if options.vllm_mode == "server":
        return {}
    if options.vllm_enable_sleep_mode:
        check_sleep()
    if inputs.num_ranks % options.vllm_tensor_parallel_size:
        raise ConfigError(
            f"vllm_tensor_parallel_size={options.vllm_tensor_parallel_size} training processes share an engine, and {inputs.num_ranks} "
            "are running: start a multiple (accelerate launch --num_processes …), or lower vllm_tensor_parallel_size."
        )
    arguments: dict[str, Any] = {
        **(lora_options(adapter) if adapter else {}),
        "dtype": inputs.dtype,
        "gpu_memory_utilization": options.vllm_gpu_memory_utilization,
        "model_impl": options.vllm_model_impl,
        "enable_sleep_mode": options.vllm_enable_sleep_mode,
        "seed": inputs.seed,
    }
    if inputs.max_images is not None:
        arguments["limit_mm_per_prompt"] = {"image": inputs.max_images, "video": 0}
    if (longest := options.vllm_max_model_length or inputs.max_tokens) is not None:
        arguments["max_model_len"] = longest
    if inputs.num_ranks > 1 and options.vllm_model_impl != "transformers":
        # vLLM runs an engine in every process; those of a tensor-parallel group work together.
        arguments |= {
            "distributed_executor_backend": "external_launcher",
            "tensor_parallel_size": options.vllm_tensor_parallel_size,
        }
    given: Any = options.vllm_engine_kwargs or {}
    return arguments | given
