"""The options of generation by vLLM, under TRL's names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from boresight.errors import ConfigError
from boresight.rollout.vllm.local import RESERVED


@dataclass
class VLLMConfig:
    """Where completions come from when not from transformers. Names and defaults are TRL's (`GRPOConfig`), except that a server is looked
    for on this machine (TRL: 0.0.0.0). `vllm_engine_kwargs`, `vllm_lora_sync`, `vllm_request_timeout` and `vllm_sync_dir` are not in
    TRL."""

    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM instead of transformers."})
    vllm_mode: str = field(
        default="colocate",
        metadata={
            "help": "'colocate': an engine in the training process. 'server': one started by boresight vllm-serve."
        },
    )
    vllm_model_impl: str = field(
        default="vllm",
        metadata={
            "help": "'vllm': vLLM's own model classes. 'transformers': transformers' inside vLLM; colocated it runs in a process of its "
            "own, since it patches the class that is trained."
        },
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "colocate: give the engine's GPU memory up while weights are trained."}
    )
    vllm_lora_sync: str = field(
        default="merged",
        metadata={
            "help": "LoRA: 'merged' sends the modules that the adapter changes, merged. 'adapter' sends the adapter, which vLLM applies "
            "(a server needs --enable-lora --max-lora-rank)."
        },
    )
    vllm_structured_outputs_regex: str | None = field(
        default=None,
        metadata={"help": "Sample only what this regular expression allows. The sampler correction accounts for it."},
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "server: its address, such as http://127.0.0.1:8000, instead of host and port."}
    )
    vllm_server_host: str = field(default="127.0.0.1", metadata={"help": "server: its host."})
    vllm_server_port: int = field(default=8000, metadata={"help": "server: its port."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "server: seconds to wait for it to be up, at the start and when it died."}
    )
    vllm_request_timeout: float = field(
        default=600.0, metadata={"help": "server: seconds that one call may take: a batch of completions, or a sync."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "server with NCCL transfer: the port of the weight update group."}
    )
    vllm_sync_dir: str | None = field(
        default=None,
        metadata={
            "help": "server with file transfer: a folder that trainer and server both see. None: /dev/shm, or the temporary folder."
        },
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3,
        metadata={"help": "colocate: share of the memory of the GPU (or of the machine) that the engine may use."},
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={
            "help": "colocate: longest prompt and completion together, in tokens. None: the data's longest prompt and "
            "max_completion_length, where all rows were measured before training, else the model's limit."
        },
    )
    vllm_tensor_parallel_size: int = field(
        default=1,
        metadata={"help": "colocate: training processes that share one engine, each with a part of the weights."},
    )
    vllm_engine_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "colocate: further engine arguments of vLLM, as a dict or JSON."}
    )


SERVER = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_request_timeout",
          "vllm_group_port", "vllm_sync_dir")  # fmt: skip
COLOCATE = ("vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size",
            "vllm_engine_kwargs")  # fmt: skip
CHILD = ("vllm_server_timeout", "vllm_request_timeout", "vllm_sync_dir")
"""Options of a server that mean something to an engine in a process of its own too."""


def check_vllm(config: VLLMConfig, *, corrects: bool) -> None:
    """Refuse contradictions before anything is loaded.

    Args:
        corrects: whether the loss corrects for what the sampler did (`vllm_importance_sampling_correction`).

    Raises:
        ConfigError: an unknown name, a reserved engine option, or an option that has no effect; the message prints the fix.
    """
    if config.vllm_mode not in ("colocate", "server"):
        raise ConfigError(f"vllm_mode={config.vllm_mode!r} is not one of 'colocate', 'server'.")
    if config.vllm_model_impl not in ("vllm", "transformers", "auto"):
        raise ConfigError(f"vllm_model_impl={config.vllm_model_impl!r} is not one of 'vllm', 'transformers', 'auto'.")
    if config.vllm_lora_sync not in ("merged", "adapter"):
        raise ConfigError(f"vllm_lora_sync={config.vllm_lora_sync!r} is not one of 'merged', 'adapter'.")
    if isinstance(config.vllm_engine_kwargs, str):
        config.vllm_engine_kwargs = _parsed(config.vllm_engine_kwargs)
    default = {option.name: option.default for option in fields(VLLMConfig)}
    for name, why in _without_effect(config).items():
        if getattr(config, name) != default[name]:
            raise ConfigError(f"{name} has no effect {why}")
    for name in set(config.vllm_engine_kwargs or {}) & RESERVED.keys():
        raise ConfigError(f"vllm_engine_kwargs[{name!r}] is boresight's to set: {RESERVED[name]}.")
    if config.vllm_structured_outputs_regex is not None and not corrects:
        raise ConfigError(
            "vllm_structured_outputs_regex bends what is sampled from, which only the sampler correction accounts for: leave "
            "vllm_importance_sampling_correction=True."
        )


def _parsed(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except json.JSONDecodeError:
        options = None
    if not isinstance(options, dict):
        raise ConfigError(f'vllm_engine_kwargs={text!r} is no JSON object: write it like {{"max_num_seqs": 64}}.')
    return options


def _without_effect(config: VLLMConfig) -> dict[str, str]:
    """Options that say nothing here, and why."""
    if not config.use_vllm:
        names = [option.name for option in fields(VLLMConfig) if option.name != "use_vllm"]
        return dict.fromkeys(names, "without use_vllm=True: set that, or drop it.")
    if config.vllm_mode == "server":
        return dict.fromkeys(COLOCATE, "with vllm_mode='server': give it to boresight vllm-serve.") | {
            "vllm_model_impl": "with vllm_mode='server': give --model-impl to boresight vllm-serve."
        }
    if config.vllm_model_impl != "transformers":
        return dict.fromkeys(SERVER, "with vllm_mode='colocate': drop it.")
    return dict.fromkeys([name for name in SERVER if name not in CHILD], "with vllm_mode='colocate': drop it.") | {
        "vllm_tensor_parallel_size": "with vllm_model_impl='transformers', whose engine is a process of its own: give "
        "--tensor-parallel-size to boresight vllm-serve, and set vllm_mode='server'."
    }
