"""Functions on torch modules that every room may use, whatever the model and its wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

Value = TypeVar("Value")


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, torch.compile and PEFT wrappers; adapters stay in its layers."""
    for name in ("module", "_orig_mod"):
        while hasattr(model, name):
            model = getattr(model, name)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue, reportReturnType]


def text_parameters(model: PreTrainedModel) -> set[nn.Parameter]:
    """The parameters of the language model and its head, which image features do not depend on."""
    head = model.get_output_embeddings()
    return {*model.get_decoder().parameters(), *(head.parameters() if head is not None else ())}


def matching_arguments(function: Callable[..., object], arguments: Mapping[str, Value]) -> dict[str, Value]:
    """The `arguments` that `function` has parameters for."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; afterwards every module returns to its former mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def switch_off_dropout(model: nn.Module) -> None:
    """Set the probability of every dropout module to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@contextmanager
def redirected(module: nn.Module, forward: Callable[[], object]) -> Iterator[None]:
    """For one call, `module(…)` runs `forward`, so that a wrapper's own forward, with its hooks, calls it. The module's own forward is back
    in place while `forward` runs, which may call it."""
    before = module.__dict__.get("forward")

    def restore() -> None:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = before

    def once() -> object:
        restore()
        return forward()

    module.forward = once
    try:
        yield
    finally:
        restore()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 divides over ranks; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
