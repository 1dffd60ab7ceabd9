"""The options of sampling with vLLM, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.options import Needs, NeedsEither, Range, option

RESERVED = {
    "model": "the engine samples from the policy",
    "runner": "the engine generates text",
    "weight_transfer_config": "weights come from the trainer",
    "worker_extension_cls": "the verification of a sync needs boresight's class",
    "logits_processors": "the ban of modality ids needs boresight's processor",
    "logprobs_mode": "log-probabilities must be those of the sampled distribution",
    "generation_config": "a checkpoint's sampling defaults are never used",
    "enable_sleep_mode": "set vllm_enable_sleep_mode",
    "gpu_memory_utilization": "set vllm_gpu_memory_utilization",
    "max_model_len": "set vllm_max_model_length",
    "tensor_parallel_size": "set vllm_tensor_parallel_size",
    "model_impl": "set vllm_model_impl",
    "enable_lora": "set vllm_lora_sync",
    "max_lora_rank": "it follows from the adapter",
    "max_loras": "there is only one policy",
    "enable_tower_connector_lora": "it follows from the adapter",
    "distributed_executor_backend": "it follows from how training was launched",
}
"""Engine options that boresight sets itself → the reason, or the option to set instead."""

Port = Range(at_least=1, at_most=65535)
Seconds = Range(above=0)

Engine = Needs("use_vllm", True)
Server = Needs("vllm_mode", "server")
Colocate = Needs("vllm_mode", "colocate", "pass it to boresight vllm-serve")
OtherProcess = NeedsEither((Server, Needs("vllm_model_impl", "transformers")))
"""A server, or an engine that training starts in a separate process."""


@dataclass
class VLLMOptions:
    """How vLLM samples completions. Names and defaults are TRL's (`GRPOConfig`), except that the default server address is 127.0.0.1
    (TRL: 0.0.0.0). `rollout_lag`, `vllm_engine_kwargs`, `vllm_in_flight_sync`, `vllm_lora_sync`, `vllm_request_timeout` and
    `vllm_sync_dir` are not in TRL."""

    heading: ClassVar[str] = "rollout"

    use_vllm: bool = option(False, "Sample with vLLM instead of transformers.")
    vllm_mode: Annotated[Literal["colocate", "server"], Engine] = option(
        "colocate", "'colocate': an engine in the training process. 'server': a server started by boresight vllm-serve."
    )
    vllm_model_impl: Annotated[
        Literal["vllm", "transformers", "auto"],
        Engine,
        Needs("vllm_mode", "colocate", "pass --model-impl to boresight vllm-serve"),
    ] = option(
        "vllm",
        "'vllm': vLLM's own model classes. 'transformers': those of transformers inside vLLM; colocated, it runs in a separate process, "
        "because it patches the class that is trained.",
    )
    vllm_enable_sleep_mode: Annotated[bool, Engine, Colocate] = option(
        False, "colocate: free the engine's GPU memory during training."
    )
    vllm_lora_sync: Annotated[Literal["merged", "adapter"], Engine] = option(
        "merged",
        "LoRA: 'merged' sends the modules that the adapter changes, with the adapter merged. 'adapter' sends only the adapter, which vLLM "
        "applies (a server needs --enable-lora --max-lora-rank).",
    )
    vllm_structured_outputs_regex: Annotated[str | None, Engine] = option(
        None, "Sample only text that matches this regular expression. The sampler correction accounts for it."
    )
    vllm_server_base_url: Annotated[list[str] | str | None, Engine, Server] = option(
        None,
        "server: the server's address, such as http://127.0.0.1:8000, instead of host and port; or those of several servers, over which "
        "prompts are spread.",
    )
    vllm_server_host: Annotated[str, Engine, Server] = option("127.0.0.1", "server: the server's host.")
    vllm_server_port: Annotated[int, Port, Engine, Server] = option(8000, "server: the server's port.")
    vllm_server_timeout: Annotated[float, Seconds, Engine, OtherProcess] = option(
        240.0, "server: seconds to wait until it is up, at the start and after a failure."
    )
    vllm_request_timeout: Annotated[float, Seconds, Engine, OtherProcess] = option(
        600.0, "server: time limit for one call in seconds, for a batch of completions or a sync."
    )
    vllm_group_port: Annotated[int, Port, Engine, Server] = option(
        51216, "server with NCCL transfer: the port of the weight update group."
    )
    rollout_lag: Annotated[int, Range(at_least=0, at_most=1), Engine, OtherProcess] = option(
        0,
        "1: sample the next rollout while optimizer steps learn from this one. Its weights are then one rollout old, which the sampler "
        "correction accounts for. 0: sample, then learn.",
    )
    vllm_in_flight_sync: Annotated[
        bool,
        Engine,
        Needs("rollout_lag", 1),
        Needs("vllm_lora_sync", "merged", "a request keeps the adapter that it began with"),
    ] = option(
        False,
        "rollout_lag=1: if the next rollout is still being sampled when an optimizer step has ended, send the weights into it. The engine "
        "pauses to load them, and unfinished completions go on with them.",
    )
    vllm_sync_dir: Annotated[str | None, Engine, OtherProcess] = option(
        None,
        "server with file transfer: a folder that trainer and server can both access. None: /dev/shm, or the temporary folder.",
        metavar="FOLDER",
    )
    vllm_gpu_memory_utilization: Annotated[float, Range(above=0, at_most=1), Engine, Colocate] = option(
        0.3, "colocate: share of GPU memory (on a CPU: of main memory) that the engine may use."
    )
    vllm_max_model_length: Annotated[int | None, Range(at_least=1), Engine, Colocate] = option(
        None,
        "colocate: most tokens of prompt and completion together. None: the data's longest prompt plus max_completion_length if all rows "
        "were measured before training, otherwise the model's limit.",
    )
    vllm_tensor_parallel_size: Annotated[
        int,
        Range(at_least=1),
        Engine,
        Needs("vllm_mode", "colocate", "pass --tensor-parallel-size to boresight vllm-serve"),
        Needs(
            "vllm_model_impl",
            ("vllm", "auto"),
            "vllm_model_impl='transformers' colocates an engine in a separate process, so pass --tensor-parallel-size to boresight "
            "vllm-serve and set vllm_mode='server'",
        ),
    ] = option(1, "colocate: number of training processes that share one engine, each with a part of the weights.")
    vllm_engine_kwargs: Annotated[dict[str, Any] | str | None, Engine, Colocate] = option(
        None, "colocate: additional engine arguments of vLLM, as a dict or JSON."
    )


def check_vllm(config: VLLMOptions, *, corrects: bool) -> None:
    """Check what `check_options` cannot.

    Args:
        config: options that `check_options` has checked.
        corrects: whether the loss corrects for the sampler's distribution (`vllm_importance_sampling_correction`).

    Raises:
        ConfigError: an engine option is reserved, a server is listed twice, or an option needs the correction or excludes another; the
            message gives the fix.
    """
    urls = config.vllm_server_base_url
    if isinstance(urls, list):
        plain = [url.rstrip("/") for url in urls]
        if not plain or len({*plain}) < len(plain):
            raise ConfigError(f"vllm_server_base_url={urls!r}: name at least one server, and each of them once.")
    if config.vllm_in_flight_sync and isinstance(urls, list) and len(urls) > 1:
        raise ConfigError(
            "vllm_in_flight_sync=True sends weights to one server: name one in vllm_server_base_url (it may have several replicas, "
            "--data-parallel-size), or leave vllm_in_flight_sync=False."
        )
    for name in {*(config.vllm_engine_kwargs or {})} & RESERVED.keys():
        raise ConfigError(f"vllm_engine_kwargs[{name!r}] is boresight's to set: {RESERVED[name]}.")
    if config.rollout_lag and config.vllm_enable_sleep_mode:
        raise ConfigError(
            "rollout_lag=1 samples during optimizer steps, and vllm_enable_sleep_mode=True frees the engine's memory for them: set one of "
            "them."
        )
    if config.rollout_lag and not corrects:
        raise ConfigError(
            "rollout_lag=1 learns from completions of older weights, and only the sampler correction accounts for it: leave "
            "vllm_importance_sampling_correction=True."
        )
    if config.vllm_structured_outputs_regex is not None and not corrects:
        raise ConfigError(
            "vllm_structured_outputs_regex changes the sampled distribution, and only the sampler correction accounts for it: leave "
            "vllm_importance_sampling_correction=True."
        )
