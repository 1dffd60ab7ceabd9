"""How accelerate divides models over ranks: what is refused, the reference's shards, and the optimizer's state."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import PeftModel
from torch import nn
from torch.distributed import checkpoint, is_initialized
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from boresight.errors import ConfigError
from boresight.model.forward import GroupForward
from boresight.modules import quantisation

INSTEAD = "use FSDP2: --accelerate_config fsdp2, or fsdp_version: 2 in your own accelerate file"
OPTIMIZER_FILE = "optimizer.pt"
SHARDS = "shards"
"""The folder of a checkpoint in which torch.distributed.checkpoint keeps each rank's shards."""


def is_set(name: str) -> bool:
    """Whether a launcher set a flag of the environment."""
    return os.environ.get(name, "false").lower() in ("1", "true")


def refuse_other_engines(args: Any) -> None:
    """Refuse ways of dividing a model that are not supported, before accelerate reads them.

    Raises:
        ConfigError: DeepSpeed, FSDP's first version, offloading from a CPU, or loading on the first rank alone.
    """
    if is_set("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(f"DeepSpeed is not supported: {INSTEAD}.")
    config: Any = args.fsdp_config or {}
    by_option = bool(args.fsdp)
    if not (is_set("ACCELERATE_USE_FSDP") or by_option):
        return
    version = config.get("version", config.get("fsdp_version", 1)) if by_option else os.environ.get("FSDP_VERSION", "1")
    if int(version) != 2:
        raise ConfigError(f"FSDP's version {version} is not supported: {INSTEAD}, or fsdp_config={{'version': 2}}.")
    if is_set("FSDP_OFFLOAD_PARAMS") and (args.use_cpu or not torch.cuda.is_available()):
        raise ConfigError(
            "fsdp2_offload keeps the shards of a GPU's model in the CPU's memory, and this run is on CPUs, where they are already: start "
            "with --accelerate_config fsdp2 (fsdp_offload_params: false)."
        )
    if is_set("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading loads weights on the first rank alone, and every rank verifies the layout on the whole model: "
            "set it to false."
        )


def refuse_quantised_shards(model: nn.Module, args: Any) -> None:
    """Refuse to divide a quantised model: its codes and scales belong together, and FSDP2 would cut the codes alone.

    Raises:
        ConfigError: FSDP2 was asked for.
    """
    if (bits := quantisation(model)) and (is_set("ACCELERATE_USE_FSDP") or args.fsdp):
        raise ConfigError(
            f"A quantised base ({bits}) cannot be divided by FSDP2: start with --accelerate_config multi_gpu (each process holds the "
            "base), or load it without load_in_4bit, load_in_8bit and quantization_config."
        )


def divide(accelerator: Accelerator) -> bool:
    """Complete what accelerate does for FSDP2, before it prepares the model. Returns whether it divides models.

    Gradients are summed in float32, over micro-batches and ranks; accelerate's policy sums them in the dtype of computing. And models are
    divided over CPU processes too: accelerate does so for GPUs alone, though its functions run anywhere.
    """
    if is_set("ACCELERATE_USE_FSDP") and accelerator.distributed_type == DistributedType.MULTI_CPU:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and accelerator.mixed_precision == "bf16":
        # Autocast casts inputs, as on one process.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return plugin is not None


def gathers_layers(accelerator: Accelerator) -> bool:
    """Whether the layers of a divided model are gathered one after another in each pass: accelerate's `fsdp_reshard_after_forward`."""
    plugin: Any = accelerator.state.fsdp_plugin
    return bool(plugin.reshard_after_forward)


def check_gathers_layers(forward: GroupForward, args: Any) -> None:
    """Check that every pass of a model runs each layer once, and keeps no layer's weights.

    Raises:
        ConfigError: its completions or images run one by one, so that ranks would exchange layers in different orders; or an option keeps
            the weights of all layers for the backward pass.
    """
    instead = "set fsdp_reshard_after_forward: false (--accelerate_config fsdp2)"
    if forward.layout == "plain" or not forward.vision.joins:
        what = "completions" if forward.layout == "plain" else "images"
        raise ConfigError(
            f"fsdp_reshard_after_forward: true gathers layers in each pass, in the same order on all ranks, and the {what} of "
            f"{type(forward.model).__name__} run one by one: {instead}."
        )
    if args.activation_offloading and not args.gradient_checkpointing:
        raise ConfigError(
            "activation_offloading would move the weights of layers that are gathered one after another (fsdp_reshard_after_forward: "
            f"true): set gradient_checkpointing=True, or {instead}."
        )
    if (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ConfigError(
            "gradient_checkpointing_kwargs={'use_reentrant': True} does not go with fsdp_reshard_after_forward: true: leave it out, or "
            f"{instead}."
        )


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Divide a frozen model's weights over ranks, in place, as accelerate divides the policy's."""
    fsdp2_prepare_model(accelerator, model)


def save_optimizer(model: nn.Module, optimizer: Any, folder: str | Path, *, writes: bool) -> None:
    """Write the whole state of an optimizer of shards from the first rank, as an optimizer without shards has it. All ranks call this."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_optimizer_state_dict(model, _inner(optimizer), options=options)
    if not writes:
        return
    groups = state["param_groups"]
    number = {name: place for place, name in enumerate(name for group in groups for name in group["params"])}
    numbered = {
        "state": {number[name]: values for name, values in state["state"].items()},
        "param_groups": [{**group, "params": [number[name] for name in group["params"]]} for group in groups],
    }
    torch.save(numbered, Path(folder) / OPTIMIZER_FILE)


def saves_shards(args: Any) -> bool:
    """Whether checkpoints keep shards: accelerate's `fsdp_state_dict_type`, where it is set."""
    config: Any = args.fsdp_config or {}
    asked = config.get("state_dict_type") if args.fsdp else os.environ.get("FSDP_STATE_DICT_TYPE")
    return str(asked).upper() == "SHARDED_STATE_DICT"


def save_shards(model: nn.Module, optimizer: Any, folder: str | Path) -> None:
    """Write each rank's shards of the weights (of an adapter's alone, where one is trained) and of the optimizer's state. All ranks call
    this together.

    Args:
        optimizer: None: the weights alone.
    """
    state = _weights(model)
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, _inner(optimizer))
    checkpoint.save(state, checkpoint_id=Path(folder) / SHARDS)


def load_shards(model: nn.Module, folder: str | Path) -> None:
    """Load the weights that any number of ranks wrote by `save_shards`, into a model with shards or without. All ranks call this."""
    _read(_weights(model), folder)


def load_optimizer_shards(model: nn.Module, optimizer: Any, folder: str | Path) -> None:
    """As `load_shards`, the state of the optimizer."""
    state = {"optimizer": get_optimizer_state_dict(model, _inner(optimizer))}
    _read(state, folder)
    set_optimizer_state_dict(model, _inner(optimizer), state["optimizer"])


def _read(state: dict[str, Any], folder: str | Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process reads by itself
        checkpoint.load(state, checkpoint_id=Path(folder) / SHARDS, no_dist=not is_initialized())


def _weights(model: nn.Module) -> dict[str, Any]:
    """The weights that a checkpoint holds. They share the model's memory, and loading copies into it. Buffers do not change."""
    return {"model": {name: weight.detach() for name, weight in model.named_parameters() if _is_kept(model, weight)}}


def _is_kept(model: nn.Module, weight: nn.Parameter) -> bool:
    return weight.requires_grad or not isinstance(model, PeftModel)


def load_optimizer(model: nn.Module, optimizer: Any, folder: str | Path) -> None:
    """Load the file of an optimizer, of shards or not, into one of shards."""
    found = torch.load(Path(folder) / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    names = [name_of[id(weight)] for group in _inner(optimizer).param_groups for weight in group["params"]]
    state = {
        "state": {names[number]: values for number, values in found["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in found["param_groups"]
        ],
    }
    set_optimizer_state_dict(model, _inner(optimizer), state, options=StateDictOptions(full_state_dict=True))


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)
