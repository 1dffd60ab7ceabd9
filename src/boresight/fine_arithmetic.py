"""Arithmetic in float32 on weights of 16 bits, so that two ways to compute a number agree to float32's precision.

In bfloat16, two right ways differ by 0.01 to 0.1 nats, and a wrong one may differ by no more: completions that see one another moved a
tiny Mistral 3 by 0.13. Here a weight is converted where an operation reads it, and nothing else changes: the numbers are those of the same
model, without the rounding of what flows through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

HALVES = (torch.float16, torch.bfloat16)

CONTRACTIONS: frozenset[Any] = frozenset(
    {
        *(
            functional.conv1d,
            functional.conv2d,
            functional.conv3d,
            functional.conv_transpose2d,
            functional.layer_norm,
            functional.group_norm,
            functional.bilinear,
        ),
        *(functional.scaled_dot_product_attention, torch.einsum, torch.baddbmm, torch.addmm, torch.mm, torch.bmm),
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm),
    }
)
"""The functions that read weights, or demand one dtype of all their tensors."""
IN_PLACE: frozenset[Any] = frozenset(
    {
        *(
            Tensor.__setitem__,
            Tensor.index_put_,
            Tensor.index_add_,
            Tensor.index_copy_,
            Tensor.scatter_,
            Tensor.scatter_add_,
        ),
        *(Tensor.masked_scatter_, Tensor.masked_fill_),
    }
)
"""Functions that write into their first tensor and demand its dtype of the others."""
CONVERSIONS: frozenset[Any] = frozenset({Tensor.to, Tensor.type, Tensor.type_as, Tensor.half, Tensor.bfloat16})


class _Linear(torch.autograd.Function):
    """A linear layer that keeps its weight in 16 bits for the backward pass: a whole model's in float32 would not fit beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = None if bias is None else bias.dtype
        return functional.linear(x.float(), weight.float(), None if bias is None else bias.float())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = upstream
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            (gradient @ weight.float()).to(x.dtype) if needs_x else None,
            (rows.T @ x.flatten(0, -2).float()).to(weight.dtype) if needs_weight else None,
            rows.sum(0).to(ctx.bias) if needs_bias else None,
        )


class FineArithmetic(TorchFunctionMode):
    """A context in which models with weights of 16 bits compute in float32. Weights in float32 are not touched."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func is functional.embedding:
            return _fine(func(*args, **kwargs))
        if func in CONTRACTIONS:
            return _in_float32(func, args, kwargs)
        try:
            found = func(*args, **kwargs)
        except (RuntimeError, ValueError) as error:  # torch has several sentences for dtypes that may not meet
            if isinstance(error, torch.OutOfMemoryError) or not _is_mixed([*args, *kwargs.values()]):
                raise
            return _in_place(func, args, kwargs) if func in IN_PLACE else _in_float32(func, args, kwargs)
        if func in CONVERSIONS and found.dtype in HALVES and args[0].dtype == torch.float32:
            return args[0].to(found.device)
        return found


def _in_float32(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return func(*map(_fine, args), **{name: _fine(value) for name, value in kwargs.items()})


def _in_place(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function that writes into its first tensor, whose dtype the others take."""
    target = args[0].dtype

    def taken(value: Any) -> Any:
        return value.to(target) if isinstance(value, Tensor) and value.is_floating_point() else value

    return func(args[0], *map(taken, args[1:]), **{name: taken(value) for name, value in kwargs.items()})


def _is_mixed(values: Sequence[Any]) -> bool:
    found = {value.dtype for value in _tensors(values) if value.is_floating_point()}
    return len(found) > 1 and not found.isdisjoint(HALVES)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _linear(*args: Any, **kwargs: Any) -> Tensor:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    return _Linear.apply(given["input"], given["weight"], given.get("bias"))  # pyright: ignore[reportReturnType]


def _fine(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value
