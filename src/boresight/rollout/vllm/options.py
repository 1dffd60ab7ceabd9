"""The options of generation by vLLM, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.options import Needs, NeedsEither, Range, option

RESERVED = {
    "model": "it is the policy",
    "runner": "the engine always generates",
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
    "max_loras": "there is one policy",
    "enable_tower_connector_lora": "it follows from the adapter",
    "distributed_executor_backend": "it follows from how training was launched",
}
"""Engine options that boresight sets itself, each with the reason or the option to use instead."""

Port = Range(at_least=1, at_most=65535)
Seconds = Range(above=0)

Engine = Needs("use_vllm", True)
Server = Needs("vllm_mode", "server")
Colocate = Needs("vllm_mode", "colocate", "pass it to boresight vllm-serve")
OtherProcess = NeedsEither((Server, Needs("vllm_model_impl", "transformers")))
"""A server, or an engine that training starts in a separate process."""


@dataclass
class VLLMOptions:
    """How completions are sampled with vLLM. Names and defaults are TRL's (`GRPOConfig`), except that the server's default host is
    127.0.0.1 (TRL: 0.0.0.0). `vllm_engine_kwargs`, `vllm_lora_sync`, `vllm_request_timeout` and `vllm_sync_dir` are not in TRL."""

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
        "'vllm': vLLM's own model classes. 'transformers': transformers' classes inside vLLM; colocated, the engine runs in a separate "
        "process, because it patches the class that is trained.",
    )
    vllm_enable_sleep_mode: Annotated[bool, Engine, Colocate] = option(
        False, "colocate: free the engine's GPU memory during training."
    )
    vllm_lora_sync: Annotated[Literal["merged", "adapter"], Engine] = option(
        "merged",
        "LoRA: 'merged' merges the adapter and sends the modules that it changes. 'adapter' sends the adapter, which vLLM applies (a "
        "server needs --enable-lora --max-lora-rank).",
    )
    vllm_structured_outputs_regex: Annotated[str | None, Engine] = option(
        None, "Sample only completions that match this regular expression. The sampler correction accounts for it."
    )
    vllm_server_base_url: Annotated[str | None, Engine, Server] = option(
        None, "server: the server's address, such as http://127.0.0.1:8000, instead of host and port."
    )
    vllm_server_host: Annotated[str, Engine, Server] = option("127.0.0.1", "server: the server's host.")
    vllm_server_port: Annotated[int, Port, Engine, Server] = option(8000, "server: the server's port.")
    vllm_server_timeout: Annotated[float, Seconds, Engine, OtherProcess] = option(
        240.0, "server: seconds to wait for the server, at the start and after it died."
    )
    vllm_request_timeout: Annotated[float, Seconds, Engine, OtherProcess] = option(
        600.0, "server: time limit in seconds of one call: a batch of completions, or a sync."
    )
    vllm_group_port: Annotated[int, Port, Engine, Server] = option(
        51216, "server with NCCL transfer: the port of the weight update group."
    )
    vllm_sync_dir: Annotated[str | None, Engine, OtherProcess] = option(
        None,
        "server with file transfer: a folder that trainer and server can both access. None: /dev/shm, or the temporary folder.",
        metavar="FOLDER",
    )
    vllm_gpu_memory_utilization: Annotated[float, Range(above=0, at_most=1), Engine, Colocate] = option(
        0.3, "colocate: share of the GPU's memory (on a CPU: of the machine's) that the engine may use."
    )
    vllm_max_model_length: Annotated[int | None, Range(at_least=1), Engine, Colocate] = option(
        None,
        "colocate: maximum length of prompt and completion together, in tokens. None: the longest prompt of the data plus "
        "max_completion_length if all rows were measured before training, else the model's limit.",
    )
    vllm_tensor_parallel_size: Annotated[
        int,
        Range(at_least=1),
        Engine,
        Needs("vllm_mode", "colocate", "pass --tensor-parallel-size to boresight vllm-serve"),
        Needs(
            "vllm_model_impl",
            ("vllm", "auto"),
            "vllm_model_impl='transformers' runs a colocated engine in a separate process, so pass --tensor-parallel-size to boresight "
            "vllm-serve and set vllm_mode='server'",
        ),
    ] = option(1, "colocate: number of training processes that share one engine, each with a part of the weights.")
    vllm_engine_kwargs: Annotated[dict[str, Any] | str | None, Engine, Colocate] = option(
        None, "colocate: additional engine arguments of vLLM, as a dict or JSON."
    )


def check_vllm(config: VLLMOptions, *, corrects: bool) -> None:
    """Refuse what `check_options` does not check.

    Args:
        config: checked by `check_options`.
        corrects: whether the loss applies the sampler correction (`vllm_importance_sampling_correction`).

    Raises:
        ConfigError: a reserved engine option, or a constrained distribution without a correction; the message prints the fix.
    """
    for name in {*(config.vllm_engine_kwargs or {})} & RESERVED.keys():
        raise ConfigError(f"vllm_engine_kwargs[{name!r}] is boresight's to set: {RESERVED[name]}.")
    if config.vllm_structured_outputs_regex is not None and not corrects:
        raise ConfigError(
            "vllm_structured_outputs_regex changes the sampled distribution, and only the sampler correction accounts for that: leave "
            "vllm_importance_sampling_correction=True."
        )
