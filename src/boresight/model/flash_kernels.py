"""Flash attention over sequences of different lengths that stand behind one another: one interface, PyTorch's kernels on CPU and on CUDA.

`merged_attention` needs two things that `scaled_dot_product_attention` hides: the log-sum-exp of a forward, and a backward that accepts
another output and log-sum-exp than its own forward's. PyTorch's operators have both. All of the logic is `merged_attention`'s; a class
here only calls the operators of its device, so tests of the CPU's class test everything but CUDA's calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]
"""Of query, key and value."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """N pairs of a sequence of queries and the sequence of keys that they see. Both kinds stand behind one another, without gaps.

    The last query stands beside the last key, as in FlashAttention: with `causal`, query i of C sees keys up to P − C + i of P.
    """

    query_lengths: tuple[int, ...]
    """Tokens, at least one in each."""
    key_lengths: tuple[int, ...]
    causal: bool
    """Whether a query sees no later keys; otherwise it sees all of its sequence."""
    window: int | None
    """How many tokens back a query sees, itself included; None for all. Only with `causal`."""
    query_ends: Int[Tensor, "_"]
    """[N + 1] int32, cumulative, starting at 0, on the device of the states."""
    key_ends: Int[Tensor, "_"]

    @classmethod
    def of(
        cls,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int] | None = None,
        *,
        causal: bool,
        window: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Sequences:
        """Args: `key_lengths` None: as long as the queries."""
        keys = query_lengths if key_lengths is None else key_lengths
        ends = (torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32) for lengths in (query_lengths, keys))
        return cls(tuple(query_lengths), tuple(keys), causal, window, *ends)


@runtime_checkable
class Kernel(Protocol):
    """Attention of queries [Tq, heads, D] to keys and values [Tk, kv heads, D]; each key head serves heads / kv heads query heads."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float
    ) -> tuple[Float[Tensor, "Tq heads D"], Float[Tensor, "heads Tq"]]:
        """The output, and the log-sum-exp of each query's scores in nats (float32; float64 for float64)."""
        ...

    def backward(
        self,
        grad: Float[Tensor, "Tq heads D"],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Float[Tensor, "Tq heads D"],
        norm: Float[Tensor, "heads Tq"],
        sequences: Sequences,
        scale: float,
    ) -> Gradients:
        """Gradients where these keys are part of a larger softmax, whose output and log-sum-exp are `out` and `norm`."""
        ...


# ---- CPU ----------------------------------------------------------------------------------------------------------------------------

_CPU: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_CPU_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


class CpuKernel:
    """PyTorch's CPU flash attention. It takes rectangles, so neighbours of equal lengths run as one call; nothing is padded."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float
    ) -> tuple[Tensor, Tensor]:
        key, value = _heads_of(query, key), _heads_of(query, value)
        out = torch.empty(query.shape, dtype=query.dtype)
        norm = torch.empty(query.shape[1::-1], dtype=torch.promote_types(query.dtype, torch.float32))
        for run in _runs(sequences):
            parts = (run.queries(query), run.keys(key), run.keys(value))
            found, found_norm = _CPU(*parts, 0.0, run.causal, attn_mask=run.mask(query.dtype), scale=scale)
            run.queries(out)[:] = found
            run.norms(norm)[:] = found_norm
        return out, norm

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        norm: Tensor,
        sequences: Sequences,
        scale: float,
    ) -> Gradients:
        kv_heads = key.shape[1]
        key, value = _heads_of(query, key), _heads_of(query, value)
        of_query, of_key, of_value = (torch.empty(states.shape, dtype=query.dtype) for states in (query, key, value))
        for run in _runs(sequences):
            states = (run.queries(grad), run.queries(query), run.keys(key), run.keys(value), run.queries(out))
            mask = run.mask(query.dtype)
            found = _CPU_BACKWARD(*states, run.norms(norm), 0.0, run.causal, attn_mask=mask, scale=scale)
            run.queries(of_query)[:], run.keys(of_key)[:], run.keys(of_value)[:] = found
        return of_query, _sum_heads(of_key, kv_heads), _sum_heads(of_value, kv_heads)


@dataclass(frozen=True, slots=True)
class _Run:
    """n neighbouring sequences of C queries and P keys."""

    n: int
    query_start: int
    query_length: int
    key_start: int
    key_length: int
    sequences: Sequences

    def queries(self, states: Tensor) -> Float[Tensor, "n heads C D"]:
        return self._rectangle(states, self.query_start, self.query_length)

    def keys(self, states: Tensor) -> Float[Tensor, "n heads P D"]:
        return self._rectangle(states, self.key_start, self.key_length)

    def norms(self, norm: Float[Tensor, "heads Tq"]) -> Float[Tensor, "n heads C"]:
        part = norm[:, self.query_start : self.query_start + self.n * self.query_length]
        return part.unflatten(1, (self.n, self.query_length)).transpose(0, 1)

    @property
    def causal(self) -> bool:
        """Whether the operator's own causal rule (first beside first) says what is wanted."""
        window = self.sequences.window
        square = self.query_length == self.key_length and (window is None or self.key_length <= window)
        return self.sequences.causal and square

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        if not self.sequences.causal or self.causal:
            return None
        return _mask(self.query_length, self.key_length, self.sequences.window, dtype)

    def _rectangle(self, states: Tensor, start: int, length: int) -> Tensor:
        return states[start : start + self.n * length].unflatten(0, (self.n, length)).transpose(1, 2)


def _runs(sequences: Sequences) -> Iterator[_Run]:
    query = key = 0
    for (queries, keys), members in groupby(zip(sequences.query_lengths, sequences.key_lengths, strict=True)):
        n = len(list(members))
        yield _Run(n, query, queries, key, keys, sequences)
        query, key = query + n * queries, key + n * keys


@lru_cache(maxsize=16)
def _mask(queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Float[Tensor, "C P"]:
    """0 where a query sees a key, −∞ elsewhere."""
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return torch.zeros(queries, keys, dtype=dtype).masked_fill(hidden, -torch.inf)


def _heads_of(query: Tensor, states: Tensor) -> Tensor:
    """The operator wants as many key heads as query heads."""
    repeats = query.shape[1] // states.shape[1]
    return states if repeats == 1 else states.repeat_interleave(repeats, 1)


def _sum_heads(gradient: Tensor, kv_heads: int) -> Tensor:
    return gradient if gradient.shape[1] == kv_heads else gradient.unflatten(1, (kv_heads, -1)).sum(2)


# ---- CUDA ---------------------------------------------------------------------------------------------------------------------------


class CudaKernel:
    """FlashAttention 2 as PyTorch carries it, with cumulative lengths: one launch for all sequences, grouped heads as they are.

    `torch.nn.attention.varlen` calls the same operators, but its backward takes no log-sum-exp from outside, so they are called here.
    The arguments below are the same in torch 2.11 and 2.13. After 2.11 the forward gained the keywords `block_table` and `num_splits`,
    which are left at their defaults; the backward did not change. The log-sum-exp is [heads, Tq] in float32.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, norm, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *_cuda_lengths(sequences), False, **_cuda_options(sequences, scale)
        )
        return out, norm

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        norm: Tensor,
        sequences: Sequences,
        scale: float,
    ) -> Gradients:
        # Without dropout the two tensors of random state are not read; the operator still asks for them.
        random = torch.zeros(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty(0, device=query.device)
        states = (grad.contiguous(), query, key, value, out.contiguous(), norm.contiguous())
        return torch.ops.aten._flash_attention_backward(
            *states, *_cuda_lengths(sequences), random, unused, **_cuda_options(sequences, scale)
        )


def _cuda_lengths(sequences: Sequences) -> tuple[Tensor, Tensor, int, int, float, bool]:
    """Cumulative lengths, longest lengths, dropout, causality: what forward and backward share.

    For sequences of one query the kernel would take a path for decoding, which lays out the log-sum-exp differently. The longest
    length only bounds its grid, so 2 avoids that.
    """
    longest_query, longest_key = max(2, *sequences.query_lengths), max(2, *sequences.key_lengths)
    return sequences.query_ends, sequences.key_ends, longest_query, longest_key, 0.0, sequences.causal


def _cuda_options(sequences: Sequences, scale: float) -> dict[str, Any]:
    options: dict[str, Any] = {"scale": scale}
    if sequences.window is not None:
        # The kernel counts the tokens before the query.
        options |= {"window_size_left": sequences.window - 1, "window_size_right": 0}
    return options


# ---- The choice ---------------------------------------------------------------------------------------------------------------------


def flash_kernel(query: Float[Tensor, "_ heads L D"], value: Float[Tensor, "_ kv _ Dv"]) -> Kernel | str:
    """The kernel for these states, or why there is none.

    Args:
        query: of keys, dtype and head size are the same.
        value: a value head of another size fits no kernel.
    """
    if query.dtype != value.dtype:
        return f"its queries are {query.dtype} and its values {value.dtype}"
    if query.shape[-1] != value.shape[-1]:
        return f"its query heads have {query.shape[-1]} features and its value heads {value.shape[-1]}"
    if query.device.type == "cpu":
        return _cpu_kernel(query.dtype)
    if query.device.type == "cuda":
        if not torch.backends.cuda.flash_sdp_enabled():
            return "torch.backends.cuda.enable_flash_sdp(False) was called"
        return _cuda_kernel(query.device, query.dtype, query.shape[-1])
    return f"PyTorch has no such kernel for {query.device.type}"


@cache
def _cpu_kernel(dtype: torch.dtype) -> Kernel | str:
    if _CPU is None or _CPU_BACKWARD is None:
        return "this PyTorch has no flash attention for CPUs"
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return CpuKernel() if dtype in floats else f"no flash kernel computes in {dtype}"


@cache
def _cuda_kernel(device: torch.device, dtype: torch.dtype, size: int) -> Kernel | str:
    """The last question is the kernel itself: builds without it, and cards that it does not know, are found on one tiny sequence."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"CUDA's flash attention computes in bfloat16 and float16, not in {dtype}"
    if size % 8 or size > 256:
        return f"CUDA's flash attention takes heads of up to 256 features, a multiple of 8, not {size}"
    kernel = CudaKernel()
    states = torch.ones(2, 1, size, dtype=dtype, device=device)
    pair = Sequences.of([2], causal=True, device=device)
    try:
        out, norm = kernel.forward(states, states, states, pair, 1.0)
        kernel.backward(out, states, states, states, out, norm, pair, 1.0)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"CUDA's flash attention does not run here ({str(error).splitlines()[0]})"
    return kernel
