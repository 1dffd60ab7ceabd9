"""Models whose weights are divided over ranks by PyTorch's FSDP2 (`fully_shard`).

Between steps each rank holds its shard of weights, gradients and optimizer state. For a step the weights are gathered once, the passes run
as on one process, and the summed gradients are scattered once at its end. So ranks may run different passes: other numbers of
micro-batches or of sampled tokens, no images, smaller micro-batches after one did not fit. FSDP2's own schedule gathers layer by layer in
every pass instead; it needs less memory, and stops for ever where ranks' passes differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from boresight.errors import CheckpointError
from boresight.modules import redirected

_gathered: WeakSet[nn.Module] = WeakSet()
"""The models whose weights are gathered now."""


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are divided over ranks."""
    return isinstance(model, FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that a model was loaded as; `fully_shard` gives it a class of its own."""
    return next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))


@contextmanager
def gathered(*models: nn.Module | None) -> Iterator[None]:
    """The whole weights of models on every rank. All ranks call this together; models without shards are passed over.

    Weights that are changed inside are not kept.
    """
    roots = [model for model in models if isinstance(model, FSDPModule) and model not in _gathered]
    for root in roots:
        _prepare(root)
        for unit in _units(root):
            unit.unshard()
        _gathered.add(root)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for root in roots:
            _gathered.discard(root)  # pyright: ignore[reportArgumentType]
            for unit in _units(root):
                unit.reshard()


def scatter_gradients(model: nn.Module) -> None:
    """Average the gradients of a gathered model over ranks; each rank keeps those of its shard. All ranks call this together.

    A backward pass whose gradients are all 0 runs through the root, so every trained weight has a gradient on every rank.
    """
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(True)
    try:
        _through_root(model, lambda: _zero(model)).backward()
    finally:
        model.set_requires_gradient_sync(False)


def drop_gradients(model: nn.Module) -> None:
    """Drop the gradients of passes that are run again."""
    model.zero_grad(set_to_none=True)
    if isinstance(model, FSDPModule):
        for unit in _units(model):
            group: Any = unit._get_fsdp_state()._fsdp_param_group  # there is no public way to these sums
            for weight in () if group is None else group.fsdp_params:
                weight.unsharded_accumulated_grad = None


def _units(root: FSDPModule) -> list[FSDPModule]:
    modules: Any = root
    return [module for module in modules.modules() if isinstance(module, FSDPModule)]


def _prepare(root: FSDPModule) -> None:
    """Let only `gathered` and `scatter_gradients` communicate."""
    root.set_reshard_after_forward(False)
    root.set_reshard_after_backward(False)
    root.set_requires_gradient_sync(False)
    with torch.no_grad():
        # FSDP2 takes the module whose forward runs first for the root.
        _through_root(root, lambda: torch.zeros(()))


def _through_root(root: Any, work: Any) -> Tensor:
    with redirected(root, work):
        return root()


def _zero(model: nn.Module) -> Tensor:
    """0, which depends on every trained weight."""
    trained = [weight for weight in model.parameters() if weight.requires_grad and weight.numel()]
    return torch.stack([weight.flatten()[0].float() * 0 for weight in trained]).sum()


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
