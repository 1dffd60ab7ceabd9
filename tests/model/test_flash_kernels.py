"""The kernels behind merged attention: the same tests on a CPU and, where there is one, on a CUDA device."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from boresight.model import attention, merged_attention
from boresight.model.attention import BranchTable, packed_attention, padded_attention
from boresight.model.flash_kernels import CpuKernel, CudaKernel, Kernel, Sequences, flash_kernel
from boresight.model.merged_attention import Pieces
from tests.model.rows import row_of

HEADS, KV_HEADS, SIZE, SCALE = 4, 2, 16, 0.3
DEVICES = [
    pytest.param("cpu", torch.float32, 1e-5, id="cpu"),
    pytest.param("cpu", torch.bfloat16, 0.05, id="cpu in bfloat16"),
    pytest.param(
        "cuda",
        torch.bfloat16,
        0.05,
        id="cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: its kernel is not run"),
    ),
]
SEQUENCES: dict[str, dict[str, Any]] = {
    "causal": {"query_lengths": [3, 5, 5, 1], "causal": True},
    "causal, one query": {"query_lengths": [1], "causal": True},
    "all keys": {"query_lengths": [6, 2, 1], "key_lengths": [4, 7, 3], "causal": False},
    "more keys than queries": {"query_lengths": [3, 2, 2], "key_lengths": [5, 2, 6], "causal": True},
    "window": {"query_lengths": [9, 4, 4], "causal": True, "window": 3},
    "window, more keys": {"query_lengths": [5, 3], "key_lengths": [7, 6], "causal": True, "window": 4},
}


def states_of(*lengths: int, device: str, dtype: torch.dtype, heads: tuple[int, ...] = (HEADS, KV_HEADS, KV_HEADS)):
    torch.manual_seed(0)
    return [torch.randn(length, number, SIZE).to(device, dtype) for length, number in zip(lengths, heads, strict=True)]


def scores_by_definition(query: Tensor, key: Tensor, sequences: Sequences) -> Tensor:
    """[heads, Tq, Tk] in float64, −∞ where a query does not see a key, one entry at a time."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", query.double().cpu(), key.double().cpu()) * SCALE
    seen = torch.zeros(scores.shape[1:], dtype=torch.bool)
    q = k = 0
    for queries, keys in zip(sequences.query_lengths, sequences.key_lengths, strict=True):
        for i in range(queries):
            for j in range(keys):
                back = keys - queries + i - j
                near = sequences.window is None or back < sequences.window
                seen[q + i, k + j] = not sequences.causal or (back >= 0 and near)
        q, k = q + queries, k + keys
    return scores.masked_fill(~seen, -torch.inf)


def by_definition(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    scores = scores_by_definition(query, key, sequences)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1).double().cpu()
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value), scores.logsumexp(-1)


def kernel_of(query: Tensor, value: Tensor) -> Kernel:
    kernel = flash_kernel(query[None].transpose(1, 2), value[None].transpose(1, 2))
    assert not isinstance(kernel, str), kernel
    return kernel


@pytest.mark.parametrize("shape", SEQUENCES)
@pytest.mark.parametrize(("device", "dtype", "bound"), DEVICES)
def test_a_kernel_is_attention_by_definition(device: str, dtype: torch.dtype, bound: float, shape: str) -> None:
    """Output, log-sum-exp and gradients of each sequence, with grouped heads."""
    sequences = Sequences.of(**SEQUENCES[shape], device=device)
    queries, keys = sum(sequences.query_lengths), sum(sequences.key_lengths)
    query, key, value = states = states_of(queries, keys, keys, device=device, dtype=dtype)
    leaves = [part.double().cpu().requires_grad_() for part in states]
    expected, expected_norm = by_definition(*leaves, sequences)
    kernel = kernel_of(query, value)
    out, norm = kernel.forward(query, key, value, sequences, SCALE)
    assert out.dtype == dtype and norm.dtype == torch.float32
    torch.testing.assert_close(out.double().cpu(), expected, atol=bound, rtol=bound)
    torch.testing.assert_close(norm.double().cpu(), expected_norm, atol=bound, rtol=bound)
    grad = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, leaves, grad.double().cpu())
    found = kernel.backward(grad, query, key, value, out, norm, sequences, SCALE)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, atol=bound, rtol=bound)


ROWS = {
    "one group": [(7, [3, 5, 5])],
    "several groups": [(7, [3, 0, 5]), (4, [6]), (1, [1, 1])],
    "no completions": [(5, [0, 0]), (3, [2, 2])],
}


def merged_and_two_calls(
    shapes: list[tuple[int, list[int]]], window: int | None, device: str, dtype: torch.dtype, kernel: Kernel | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of merged attention in `dtype` (with `kernel`, or the device's own), and of two SDPA calls in float32."""
    row = row_of(shapes)
    table = BranchTable.of(row).to(torch.device(device))
    length = len(row.ids)
    states = states_of(length, length, length, device=device, dtype=dtype)
    weight = torch.randn(1, length, HEADS, SIZE, device=device)
    results = []
    for wide in (False, True):
        leaves = [part.transpose(0, 1)[None].to(torch.float32 if wide else dtype).requires_grad_() for part in states]
        query, key, value = leaves
        if wide:
            out = padded_attention(query, key, value, table, SCALE, window)
        else:
            own = kernel or kernel_of(states[0], states[2])
            out = merged_attention.merged_attention(query, key, value, table.pieces(window), own, SCALE)
        results.append([out, *torch.autograd.grad(out, leaves, weight.to(out.dtype))])
    return results[0], results[1]


def worst(pair: tuple[list[Tensor], list[Tensor]]) -> float:
    """Largest difference of an output or gradient, relative to the largest entry or 1 (a window of 1 leaves keys no gradient)."""
    return max(
        ((one.float() - other).abs().max() / other.abs().max().clamp(min=1)).item()
        for one, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("window", [None, 1, 3, 8])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("device", "dtype", "bound"), DEVICES)
def test_pieces_equal_two_sdpa_calls(device: str, dtype: torch.dtype, bound: float, row: str, window: int | None):
    assert worst(merged_and_two_calls(ROWS[row], window, device, dtype, None)) <= bound


# ---- Negative controls --------------------------------------------------------------------------------------------------------------


class OwnNorm(CpuKernel):
    """A backward with each piece's own softmax instead of the union's."""

    def backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any):
        *_, sequences, scale = rest
        return super().backward(
            grad, query, key, value, *self.forward(query, key, value, sequences, scale), sequences, scale
        )


class NotCausal(CpuKernel):
    """Sequences that see their own future."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scale: float):
        open_ = Sequences.of(sequences.query_lengths, sequences.key_lengths, causal=False)
        return super().forward(query, key, value, open_, scale)


@pytest.mark.parametrize("kernel", [OwnNorm, NotCausal])
def test_a_wrong_kernel_is_far_off(kernel: type[CpuKernel]) -> None:
    assert worst(merged_and_two_calls(ROWS["one group"], None, "cpu", torch.float32, kernel())) > 0.1


def test_a_window_off_by_one_is_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    of = Pieces.of
    monkeypatch.setattr(Pieces, "of", lambda spans, window, device: of(spans, window + 1, device))
    assert worst(merged_and_two_calls(ROWS["one group"], 3, "cpu", torch.float32, None)) > 0.1


def test_branches_without_their_prompt_are_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_attention, "_shared", lambda groups, device: None)
    assert worst(merged_and_two_calls(ROWS["one group"], None, "cpu", torch.float32, None)) > 0.1


# ---- The pieces of a row ------------------------------------------------------------------------------------------------------------


def test_pieces_by_hand() -> None:
    """A prompt of three with branches of one and two and an empty one, then a prompt of two that a lone completion of one continues."""
    pieces = Pieces.of(row_of([(3, [1, 2, 0]), (2, [1])]).spans, None)
    assert pieces.own.query_lengths == pieces.own.key_lengths == (3, 1, 2, 3)
    assert pieces.own.causal and pieces.own.window is None and pieces.own_keys is None
    assert pieces.own.query_ends.tolist() == [0, 3, 4, 6, 9]
    assert pieces.own.query_ends.dtype == torch.int32
    assert pieces.shared is not None
    # The prompt's keys are a slice of the row: no copy, however many branches.
    assert (pieces.shared.branches, pieces.shared.prompts) == (slice(3, 6), slice(0, 3))
    assert (pieces.shared.sequences.query_lengths, pieces.shared.sequences.key_lengths) == ((3,), (3,))
    assert not pieces.shared.sequences.causal


def test_prompts_of_several_groups_are_taken_once_each() -> None:
    pieces = Pieces.of(row_of([(3, [1, 2]), (2, [1, 1])]).spans, None)
    assert pieces.shared is not None and isinstance(pieces.shared.prompts, Tensor)
    assert pieces.shared.prompts.tolist() == [0, 1, 2, 6, 7]
    assert isinstance(pieces.shared.branches, Tensor) and pieces.shared.branches.tolist() == [3, 4, 5, 8, 9]


def test_a_window_copies_at_most_a_window_of_the_prompt() -> None:
    pieces = Pieces.of(row_of([(5, [1, 2])]).spans, 3)
    assert pieces.shared is None and pieces.own_keys is not None
    assert pieces.own_keys.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 3, 4, 6, 7]
    assert pieces.own.window == 3 and pieces.own.key_lengths == (5, 3, 4)


def test_a_window_that_nothing_reaches_is_full_attention() -> None:
    pieces = Pieces.of(row_of([(5, [1, 2])]).spans, 7)
    assert pieces.own_keys is None and pieces.own.window is None and pieces.shared is not None


# ---- CUDA's operators, as far as a machine without CUDA can test them -------------------------------------------------------------


@pytest.mark.parametrize("shape", SEQUENCES)
def test_this_torch_accepts_the_calls_of_cuda(shape: str) -> None:
    """torch knows the operators' arguments and the shapes of their results without running them (the `meta` device)."""
    sequences = Sequences.of(**SEQUENCES[shape], device="meta")
    queries, keys = sum(sequences.query_lengths), sum(sequences.key_lengths)
    query, key, value = states_of(queries, keys, keys, device="meta", dtype=torch.bfloat16)
    out, norm = CudaKernel().forward(query, key, value, sequences, SCALE)
    assert out.shape == query.shape and out.dtype == query.dtype
    assert norm.shape == (HEADS, queries) and norm.dtype == torch.float32
    found = CudaKernel().backward(out, query, key, value, out, norm, sequences, SCALE)
    assert [gradient.shape for gradient in found] == [query.shape, key.shape, value.shape]


# ---- The choice ---------------------------------------------------------------------------------------------------------------------


def test_states_that_fit_no_kernel_say_why() -> None:
    query = torch.randn(1, HEADS, 3, SIZE)
    assert isinstance(flash_kernel(query, query), CpuKernel)
    assert "torch.float32 and its values torch.bfloat16" in str(flash_kernel(query, query.bfloat16()))
    assert "16 features and its value heads 8" in str(flash_kernel(query, query[..., :8]))
    assert "no such kernel for meta" in str(flash_kernel(query.to("meta"), query.to("meta")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: what its kernel refuses is not asked")
def test_cuda_says_what_it_does_not_take() -> None:
    states = torch.randn(1, HEADS, 3, SIZE, device="cuda")
    assert "not in torch.float32" in str(flash_kernel(states, states))
    narrow = states[..., :12].bfloat16()
    assert "a multiple of 8, not 12" in str(flash_kernel(narrow, narrow))
    assert isinstance(flash_kernel(states.bfloat16(), states.bfloat16()), CudaKernel)


def test_the_fallback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    attention._log_fallback.cache_clear()
    row = row_of([(4, [2, 3])])
    table = BranchTable.of(row, blocks="image")
    query, key, value = (torch.randn(1, heads, len(row.ids), SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        for _ in range(3):
            packed_attention(query, key, value, table, SCALE, None)
    assert [record.message for record in caplog.records] == [
        "Attention over a prompt and its completions takes two masked SDPA calls on cpu: the tokens of an image attend to one another."
    ]


def test_autocast_casts_what_norms_left_wide() -> None:
    """Float32 weights of a query's norm make it float32 under autocast; SDPA casts it back, and so must we."""
    row = row_of([(4, [2, 3])])
    table = BranchTable.of(row)
    query, key, value = (torch.randn(1, heads, len(row.ids), SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS))
    with torch.autocast("cpu", torch.bfloat16):
        found = packed_attention(query, key, value.bfloat16(), table, SCALE, None)
        expected = padded_attention(query, key, value.bfloat16(), table, SCALE, None)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
