"""Attention over a packed row on a CPU, in pieces by flash attention that are merged by their log-sum-exps.

A branch attends to its whole prompt and its own earlier tokens. With both in one rectangle, SDPA needs a mask and a copy of the
prompt's keys for every branch, and computes masked entries too. Three pieces avoid all of this: the prompt with itself (causal), all
branches of a group with the prompt (no mask), and each branch with itself (causal). Softmax over the union of two pieces is the mean of
their outputs weighted by exp(log-sum-exp). The flash backward needs only the output and log-sum-exp of the union, so each piece
receives those, and the gradients add up (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691).

`attention.padded_attention` does the same in two SDPA calls; tests compare both with one dense mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from boresight.model.packing import GroupSpan

FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FLASH_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
"""PyTorch's CPU kernels, in the variants that return the log-sum-exp and accept it in the backward pass."""


def can_merge(states: Tensor) -> bool:
    """Whether PyTorch has these kernels for tensors of this device and dtype."""
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return FLASH is not None and FLASH_BACKWARD is not None and states.device.type == "cpu" and states.dtype in floats


def merged_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 heads L D"],
    value: Float[Tensor, "1 heads L D"],
    spans: Sequence[GroupSpan],
    scale: float,
) -> Float[Tensor, "1 heads L D"]:
    """Attention of every token of a packed row to its prompt and to the earlier tokens of its branch.

    Keys and values must have as many heads as queries.
    """
    return _Merged.apply(query, key, value, tuple(spans), scale)  # pyright: ignore[reportReturnType]


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: tuple[GroupSpan, ...], scale: float
    ) -> Tensor:
        out = query.new_empty(_memory(query)).transpose(1, 2)
        norm = torch.empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for prompt, rest, lengths in _pieces(spans):
            q, k, v, o, n = (x[:, :, prompt] for x in (query, key, value, out, norm))
            o[:], n[:] = FLASH(q, k, v, is_causal=True, scale=scale)
            if not lengths:
                continue
            seen, seen_norm = FLASH(query[:, :, rest], k, v, scale=scale)
            own, own_norm = (
                _unfold(x, lengths)
                for x in FLASH(
                    *(_fold(x[:, :, rest], lengths) for x in (query, key, value)), is_causal=True, scale=scale
                )
            )
            n = torch.logaddexp(seen_norm, own_norm)
            norm[:, :, rest] = n
            out[:, :, rest] = seen * _weight(seen_norm, n, seen) + own * _weight(own_norm, n, own)
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.spans, ctx.scale = spans, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        states = (grad, *ctx.saved_tensors)  # accessed once: checkpointing recomputes them for each access
        query = states[1]
        gradients = tuple(query.new_empty(_memory(query)).transpose(1, 2) for _ in range(3))
        of_query, *of_rest = gradients
        for prompt, rest, lengths in _pieces(ctx.spans):
            g, q, k, v, o, n = (x[:, :, prompt] for x in states)
            found = FLASH_BACKWARD(g, q, k, v, o, n, 0.0, True, scale=ctx.scale)
            for gradient, piece in zip(gradients, found, strict=True):
                gradient[:, :, prompt] = piece
            if not lengths:
                continue
            g, q, _, _, o, n = (x[:, :, rest] for x in states)
            seen = FLASH_BACKWARD(g, q, k, v, o, n, 0.0, False, scale=ctx.scale)
            # Padding has no gradient; an infinite norm also keeps its probabilities at 0, whatever its values.
            *folded, n = (_fold(x[:, :, rest], lengths) for x in states)
            n = n.masked_fill(_padding(lengths)[:, None], torch.inf)
            own = FLASH_BACKWARD(*folded, n, 0.0, True, scale=ctx.scale)
            own = [_unfold(x, lengths) for x in own]
            of_query[:, :, rest] = seen[0] + own[0]
            for gradient, shared, mine in zip(of_rest, seen[1:], own[1:], strict=True):
                gradient[:, :, prompt] += shared
                gradient[:, :, rest] = mine
        return *gradients, None, None


def _memory(states: Tensor) -> tuple[int, int, int, int]:
    """[1, L, heads, D]: the memory layout of the projections around attention, so that they need no copy."""
    return states.shape[0], states.shape[2], states.shape[1], states.shape[3]


def _pieces(spans: Sequence[GroupSpan]) -> Iterator[tuple[slice, slice, tuple[int, ...]]]:
    """For each group: the prompt's slice, the slice of all branches, and their lengths. A single branch is part of its prompt."""
    for span in spans:
        end = span.start + span.prompt
        last = end + sum(span.branches)
        if len(span.branches) > 1:
            # The kernels divide by the number of queries, so empty branches must not reach them.
            yield slice(span.start, end), slice(end, last), tuple(length for length in span.branches if length)
        else:
            yield slice(span.start, last), slice(last, last), ()


def _weight(piece: Tensor, whole: Tensor, states: Tensor) -> Float[Tensor, "1 heads _ 1"]:
    """A piece's share of the softmax's total weight."""
    return (piece - whole).exp()[..., None].to(states.dtype)


def _fold(states: Float[Tensor, "1 heads _ *D"], lengths: tuple[int, ...]) -> Float[Tensor, "K heads _ *D"]:
    """[1, heads, sum of lengths, …] → [K, heads, longest, …], the branches side by side, padded with zeros."""
    own = states[0]
    if len(set(lengths)) == 1:
        return own.unflatten(1, (len(lengths), lengths[0])).transpose(0, 1)
    folded = own.new_zeros(len(lengths), own.shape[0], max(lengths), *own.shape[2:])
    for branch, part in zip(folded, own.split(lengths, 1), strict=True):
        branch[:, : part.shape[1]] = part
    return folded


def _unfold(states: Float[Tensor, "K heads _ *D"], lengths: tuple[int, ...]) -> Float[Tensor, "1 heads _ *D"]:
    """`_fold`'s inverse: [K, heads, longest, …] → [1, heads, sum of lengths, …]."""
    if len(set(lengths)) == 1:
        return states.transpose(0, 1).flatten(1, 2)[None]
    return torch.cat([branch[:, :length] for branch, length in zip(states, lengths, strict=True)], 1)[None]


def _padding(lengths: tuple[int, ...]) -> Bool[Tensor, "K _"]:
    """[K, longest] true where `_fold` padded."""
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
