"""Attention over a packed row in pieces by flash attention, which are merged by their log-sum-exps.

A branch attends to its whole prompt and its own earlier tokens. With both in one rectangle, SDPA needs a mask and a copy of the
prompt's keys for every branch, and computes masked entries too. Two calls for the whole row avoid all of this: every prompt and every
branch with itself (causal), and all branches of a group with their prompt (all of it, its keys as they stand). Softmax over the union
of two pieces is the mean of their outputs weighted by exp(log-sum-exp). The flash backward needs only the output and log-sum-exp of
the union, so each piece receives those, and the gradients add up (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2,
arXiv 2307.08691).

Where a sliding window cuts into a shared prompt, branches see different parts of it. Then one call suffices: the keys of a branch are
the last tokens of its prompt, at most a window of them, and its own.

The kernels are in `flash_kernels`; `attention.padded_attention` does the same in two SDPA calls; tests compare both with one dense mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from boresight.model.flash_kernels import Kernel, Sequences
from boresight.model.packing import GroupSpan

Places = slice | Int[Tensor, "_"]
"""Tokens of the row: a slice, which costs nothing, or indices."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """The branches of every group as queries, and the prompts as keys."""

    sequences: Sequences
    branches: Places
    prompts: Places
    """Each prompt once. With one group a slice of the row: nothing is copied."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The calls of a packed row of L tokens, for one kind of layer. They are built once per row."""

    own: Sequences
    """Every prompt and every branch with itself, as they stand in the row. A single branch is part of its prompt."""
    own_keys: Int[Tensor, "_"] | None
    """The row's tokens that are the keys of `own`; None: the row as it stands."""
    shared: Shared | None
    """None: no prompt has several branches, or a window makes `own_keys` hold the prompts' last tokens."""

    @classmethod
    def of(cls, spans: Sequence[GroupSpan], window: int | None, device: torch.device | str = "cpu") -> Pieces:
        """The pieces of a row.

        Args:
            spans: the row's groups.
            window: how many tokens back a query attends, itself included; None for full attention.
            device: of the states.
        """
        groups = [_Group.of(span) for span in spans]
        if window is not None and window >= max(group.longest for group in groups):
            window = None
        if window is not None and any(group.branches for group in groups):
            return cls._windowed(groups, window, device)
        lengths = [length for group in groups for length in (group.prompt, *group.branches)]
        own = Sequences.of(lengths, causal=True, window=window, device=device)
        return cls(own, None, _shared([group for group in groups if group.branches], device))

    @classmethod
    def _windowed(cls, groups: Sequence[_Group], window: int, device: torch.device | str) -> Pieces:
        queries, keys, places = [], [], []
        for group in groups:
            end = group.start + group.prompt
            tail = torch.arange(max(group.start, end - window + 1), end)
            queries += [group.prompt, *group.branches]
            keys += [group.prompt, *(len(tail) + length for length in group.branches)]
            places.append(torch.arange(group.start, end))
            for length in group.branches:
                places += [tail, torch.arange(end, end + length)]
                end += length
        sequences = Sequences.of(queries, keys, causal=True, window=window, device=device)
        return cls(sequences, torch.cat(places).to(device), None)


@dataclass(frozen=True, slots=True)
class _Group:
    """A group as attention sees it: a single branch continues its prompt, and kernels take no empty sequences."""

    start: int
    prompt: int
    branches: tuple[int, ...]

    @classmethod
    def of(cls, span: GroupSpan) -> _Group:
        if len(span.branches) == 1:
            return cls(span.start, span.prompt + span.branches[0], ())
        return cls(span.start, span.prompt, tuple(length for length in span.branches if length))

    @property
    def longest(self) -> int:
        return self.prompt + max(self.branches, default=0)

    @property
    def prompt_slice(self) -> slice:
        return slice(self.start, self.start + self.prompt)

    @property
    def branch_slice(self) -> slice:
        end = self.start + self.prompt
        return slice(end, end + sum(self.branches))


def _shared(groups: Sequence[_Group], device: torch.device | str) -> Shared | None:
    if not groups:
        return None
    queries, keys = [sum(group.branches) for group in groups], [group.prompt for group in groups]
    sequences = Sequences.of(queries, keys, causal=False, device=device)
    branches, prompts = [group.branch_slice for group in groups], [group.prompt_slice for group in groups]
    if len(groups) == 1:
        return Shared(sequences, branches[0], prompts[0])
    places = (
        torch.cat([torch.arange(part.start, part.stop) for part in parts]).to(device) for parts in (branches, prompts)
    )
    return Shared(sequences, *places)


def merged_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv L D"],
    value: Float[Tensor, "1 kv L D"],
    pieces: Pieces,
    kernel: Kernel,
    scale: float,
) -> Float[Tensor, "1 L heads D"]:
    """Attention of every token of a packed row to its prompt and to the earlier tokens of its branch.

    Every key head serves heads / kv heads query heads.
    """
    rows = (states[0].transpose(0, 1) for states in (query, key, value))
    return _Merged.apply(*rows, pieces, kernel, scale)[None]  # pyright: ignore[reportOptionalSubscript]


class _Merged(torch.autograd.Function):
    """States are [L, heads, D]: the memory layout of the projections around attention, so that they need no copy."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Pieces, kernel: Kernel, scale: float
    ) -> Tensor:
        own_keys = slice(None) if pieces.own_keys is None else pieces.own_keys
        out, norm = kernel.forward(query, key[own_keys], value[own_keys], pieces.own, scale)
        if (shared := pieces.shared) is not None:
            branches, prompts = shared.branches, shared.prompts
            seen, seen_norm = kernel.forward(query[branches], key[prompts], value[prompts], shared.sequences, scale)
            own, own_norm = out[branches], norm[:, branches]
            whole = torch.logaddexp(seen_norm, own_norm)
            out[branches] = seen * _weight(seen_norm, whole, seen) + own * _weight(own_norm, whole, own)
            norm[:, branches] = whole
        ctx.save_for_backward(query, key, value, out, norm)
        ctx.pieces, ctx.kernel, ctx.scale = pieces, kernel, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out, norm = ctx.saved_tensors  # accessed once: checkpointing recomputes them for each access
        pieces, kernel, scale = ctx.pieces, ctx.kernel, ctx.scale
        if pieces.own_keys is not None:
            states = (query, key[pieces.own_keys], value[pieces.own_keys], out, norm)
            of_query, *copies = kernel.backward(grad, *states, pieces.own, scale)
            return of_query, *(_gather_back(copy, pieces.own_keys, key) for copy in copies), None, None, None
        of_query, of_key, of_value = kernel.backward(grad, query, key, value, out, norm, pieces.own, scale)
        if (shared := pieces.shared) is not None:
            branches, prompts = shared.branches, shared.prompts
            states = (grad[branches], query[branches], key[prompts], value[prompts], out[branches], norm[:, branches])
            of_branches, of_prompt_keys, of_prompt_values = kernel.backward(*states, shared.sequences, scale)
            of_query[branches] += of_branches
            of_key[prompts] += of_prompt_keys
            of_value[prompts] += of_prompt_values
        return of_query, of_key, of_value, None, None, None


def _weight(piece: Float[Tensor, "heads T"], whole: Float[Tensor, "heads T"], states: Tensor) -> Tensor:
    """[T, heads, 1] a piece's share of the softmax's total weight."""
    return (piece - whole).exp().T[..., None].to(states.dtype)


def _gather_back(gradient: Tensor, places: Int[Tensor, "_"], states: Tensor) -> Tensor:
    """The sum over all copies of a token, in float32 at least."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return torch.zeros_like(states, dtype=wide).index_add_(0, places, gradient.to(wide)).to(states.dtype)
