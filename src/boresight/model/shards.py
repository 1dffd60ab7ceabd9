"""Models whose weights are divided over ranks by PyTorch's FSDP2 (`fully_shard`).

Between steps each rank holds its shard of weights, gradients and optimizer state. `gathered` makes them whole for a time, in one of two
ways:

- The whole weights: the passes run as on one process, and the summed gradients are scattered once at the end. So ranks may run different
  passes: other numbers of micro-batches or of sampled tokens, no images, smaller micro-batches after one did not fit.
- All but the decoder's layers (`layers=False`). Each layer gathers itself for its part of a pass, and its gradients are scattered as soon
  as they are computed. This needs the memory of two layers instead of all, and ranks must run the same number of passes: they exchange
  each layer in the same order. What a pass runs beside the layers may differ, such as the vision tower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from boresight.errors import CheckpointError, ConfigError, ModelError
from boresight.modules import redirected, unwrap

Result = TypeVar("Result")
_whole: WeakSet[nn.Module] = WeakSet()
"""The units (what FSDP2 gathers together: a layer, or the rest) whose weights are whole now, whatever runs."""


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are divided over ranks."""
    return isinstance(model, FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that a model was loaded as; `fully_shard` gives it a class of its own."""
    return next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))


@contextmanager
def gathered(*models: nn.Module | None, layers: bool = True) -> Iterator[None]:
    """The whole weights of models on every rank. All ranks call this together; models without shards are passed over.

    Weights that are changed inside are not kept.

    Args:
        layers: also those of the decoder's layers. Without them, each layer is gathered where a pass runs it (`through_root`), so that
            all ranks must run as many passes.
    """
    units: list[FSDPModule] = []
    for root in [model for model in models if isinstance(model, FSDPModule)]:
        _prepare(root)
        own = set() if layers else _aligned_layers(root)
        units += [unit for unit in _units(root) if unit not in own]
    with _held(units):
        yield


@contextmanager
def gathered_in(model: nn.Module, name: str) -> Iterator[None]:
    """The whole weights of the decoder's layer of this name, of a model that is gathered but for them. All ranks call this together.

    Args:
        name: of a module inside of PEFT's wrapper; nothing happens if no layer is there.
    """
    inside = set(unwrap(model).get_submodule(name).modules()) if name else set()
    with _held([layer for layer in _layers(model) if layer in inside]):
        yield


@contextmanager
def _held(units: list[FSDPModule]) -> Iterator[None]:
    held: list[FSDPModule] = []
    try:
        for unit in units:
            if unit not in _whole:
                _communicate(unit, False)
                unit.unshard()
                _whole.add(unit)  # pyright: ignore[reportArgumentType]
                held.append(unit)
        yield
    finally:
        for unit in held:
            _whole.discard(unit)  # pyright: ignore[reportArgumentType]
            unit.reshard()
            _communicate(unit, True)


def through_root(root: nn.Module, work: Callable[[], Result]) -> Result:
    """A forward pass inside a model of shards. Its layers are gathered one after another, unless they are whole.

    Raises:
        ModelError: the pass does not run each layer once, in order; other ranks may wait for a layer then.
    """
    visits: list[int] = []
    holder: Any = root
    holder._layer_visits = visits
    try:
        result = _as_forward(root, work)
    finally:
        holder._layer_visits = None
    if exchanges_layers(root) and visits != list(range(len(_layers(root)))):
        raise ModelError(
            f"{class_of(unwrap(root)).__name__} does not run each of its layers once in a pass, so they cannot be gathered one after "
            "another: set fsdp_reshard_after_forward: false (--accelerate_config fsdp2)."
        )
    return result


def exchanges_layers(model: nn.Module) -> bool:
    """Whether a pass of a model exchanges layers with other ranks, as the weights are now."""
    return is_sharded(model) and any(layer not in _whole for layer in _layers(model))


def scatter_gradients(model: nn.Module) -> None:
    """Average the gradients of a model's gathered weights over ranks; each rank keeps those of its shard. All ranks call this together.

    First, trained weights that no pass of this rank used get a gradient of 0, in the dtype of the sums as all others: every rank scatters
    the same. Then one more backward pass through the root, whose gradient is 0, scatters all.
    """
    held = [unit for unit in _units(model) if unit in _whole]
    every = [weight for unit in held for weight in _weights(unit)]
    weights = [each for each in every if each.unsharded_param.requires_grad and each.unsharded_param.numel()]
    if not weights:
        return
    unused = [each for each in weights if each.unsharded_accumulated_grad is None and each.unsharded_param.grad is None]
    smallest = min((each.unsharded_param for each in weights), key=torch.numel)
    _as_forward(model, lambda: _zero([smallest, *(each.unsharded_param for each in unused)])).backward()
    for unit in held:
        unit.set_requires_gradient_sync(True, recurse=False)
    try:
        _as_forward(model, lambda: _zero([smallest])).backward()
    finally:
        for unit in held:
            unit.set_requires_gradient_sync(False, recurse=False)


def drop_gradients(model: nn.Module) -> None:
    """Drop the gradients of passes that are run again."""
    model.zero_grad(set_to_none=True)
    if isinstance(model, FSDPModule):
        for unit in _units(model):
            for weight in _weights(unit):
                weight.unsharded_accumulated_grad = None


def _weights(unit: FSDPModule) -> list[Any]:
    """What FSDP2 knows of a unit's weights. There is no public way to its sums of gradients."""
    group: Any = unit._get_fsdp_state()._fsdp_param_group
    return [] if group is None else list(group.fsdp_params)


def _units(root: Any) -> list[FSDPModule]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def _layers(root: nn.Module) -> list[FSDPModule]:
    """The decoder's layers, in order, if each is a unit of its own."""
    decoder: Any = unwrap(root).get_decoder()
    stacks = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
    return [layer for stack in stacks for layer in stack if isinstance(layer, FSDPModule)]


def _communicate(unit: FSDPModule, active: bool) -> None:
    """Whether a unit gathers its weights and scatters its gradients in each pass by itself."""
    unit.set_reshard_after_forward(active, recurse=False)
    unit.set_reshard_after_backward(active, recurse=False)
    unit.set_requires_gradient_sync(active, recurse=False)


def _prepare(root: FSDPModule) -> None:
    """Run the root's forward first: FSDP2 takes the module whose forward is the first for the root."""
    if root not in _whole:
        root.set_reshard_after_forward(False, recurse=False)
        with torch.no_grad():
            _as_forward(root, lambda: torch.zeros(()))


def _as_forward(root: Any, work: Callable[[], Result]) -> Result:
    with redirected(root, work):
        return root()


def _zero(weights: list[Tensor]) -> Tensor:
    """0, which depends on every weight."""
    return torch.stack([weight.flatten()[0].float() * 0 for weight in weights]).sum()


# ---- Layers that gather themselves -------------------------------------------------------------------------------------------------


def _aligned_layers(root: Any) -> set[FSDPModule]:
    """The layers of a model; every rank's passes exchange the same in each of them, whatever they compute.

    Raises:
        ConfigError: no layer is a unit of its own.
    """
    layers = _layers(root)
    if not layers:
        raise ConfigError(
            "fsdp_reshard_after_forward: true gathers one layer after another, and FSDP2 divides no layer of "
            f"{class_of(unwrap(root)).__name__} by itself: set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, or "
            "fsdp_reshard_after_forward: false (--accelerate_config fsdp2)."
        )
    if not getattr(root, "_is_aligned", False):
        root._is_aligned = True
        _align(root, layers)
    return set(layers)


def _align(root: Any, layers: list[FSDPModule]) -> None:
    root._layer_visits = None
    for number, layer in enumerate(layers):
        module: Any = layer

        def before(_: Any, args: tuple[Any, ...], number: int = number) -> Any:
            if root._layer_visits is not None:
                root._layer_visits.append(number)
            # Without a gradient, FSDP2 would not gather the layer in the backward pass of this rank.
            if torch.is_grad_enabled() and not args[0].requires_grad:
                return args[0].detach().requires_grad_(), *args[1:]
            return None

        def after(module: Any, args: tuple[Any, ...]) -> Any:
            return (_Entrance.apply(args[0], module), *args[1:]) if torch.is_grad_enabled() else None

        # FSDP2's own hook, which gathers the layer, is between these two.
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_pre_hook(after)


class _Entrance(torch.autograd.Function):
    """The identity. Its backward pass is the end of a layer's: trained weights that got no gradient, such as those of experts without a
    token, get one of 0, so that all ranks exchange gradients of the same sizes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: nn.Module) -> Tensor:
        ctx.layer = layer
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        for weight in ctx.layer.parameters():
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        return gradients[0], None


# ---- State -------------------------------------------------------------------------------------------------------------------------


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dictionary on the CPU of the first rank, one tensor after another; empty on other ranks. All ranks call this.

    Tied weights are one tensor under several names, as in the model.
    """
    state: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        same = first.setdefault(id(weight), name)
        if same != name and same in state:
            state[name] = state[same]
    return state


def load_full_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a model's shards, strictly. All ranks call this with the same tensors.

    Args:
        state: by the names of the model's state dictionary; of a PEFT model, by the names of its saved adapter.

    Raises:
        CheckpointError: names are missing or unknown.
    """
    own: Any = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    if own.keys() != state.keys():
        differing = sorted(own.keys() ^ state.keys())
        raise CheckpointError(
            f"{len(differing)} tensors of the checkpoint and the model differ, such as {differing[0]}."
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(as_shards(state[name], tensor))


def as_shards(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the shards of another, and in its dtype; as it is if it has shards, or the other has none."""
    value = value.to(like.device, like.dtype)
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor without shards. All ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
