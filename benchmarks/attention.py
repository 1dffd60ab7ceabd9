"""Ways to attend in a packed row, per layer, forward and backward: the figures of docs/engine.md.

    .venv/bin/python benchmarks/attention.py [--threads N] [--quick]

One dense mask over the row, two SDPA calls on padded rectangles, and flash pieces merged by log-sum-exp; all three are compared first.
Seconds are those of the process, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv

from boresight.model.attention import BranchTable, padded_attention
from boresight.model.flash_kernels import CpuKernel
from boresight.model.merged_attention import merged_attention
from boresight.model.packing import GroupSpan, PackedRow

HEADS, KV_HEADS, SIZE, REPEATS = 8, 4, 32, 9
SHAPES = ((297, 32, 8), (297, 128, 8), (1100, 128, 8), (297, 32, 2), (1100, 128, 2))
"""P, C, K"""
QUICK_SHAPES = ((19, 5, 3),)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways(prompt: int, completion: int, k: int) -> dict[str, Attend]:
    """Name → function of query, key and value of one group's row."""
    length = prompt + k * completion
    nothing = torch.zeros(length, dtype=torch.long)
    spans = (GroupSpan(0, prompt, (completion,) * k),)
    row = PackedRow(spans, nothing, nothing, nothing, nothing, nothing, nothing[None].bool())
    table, scale, repeats = BranchTable.of(row), SIZE**-0.5, HEADS // KV_HEADS
    branch = torch.arange(length).sub(prompt).div(completion, rounding_mode="floor").clamp(min=-1)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & ((branch == -1) | (branch == branch[:, None]))

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
        return scaled_dot_product_attention(query, key, value, seen, scale=scale).transpose(1, 2)

    def padded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return padded_attention(query, key, value, table, scale, None)

    def merged(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return merged_attention(query, key, value, table.pieces(None), CpuKernel(), scale)

    return {"dense mask": dense, "two SDPA calls": padded, "pieces merged": merged}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ways to attend in a packed row.")
    parser.add_argument("--threads", type=int, default=1, help="of torch's operators (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one tiny shape, once: shows that all of it runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    shapes, repeats = (QUICK_SHAPES, 1) if args.quick else (SHAPES, REPEATS)
    for prompt, completion, k in shapes:
        length = prompt + k * completion
        states = [
            torch.randn(1, length, heads, SIZE).transpose(1, 2).requires_grad_()
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        ]
        weight = torch.randn(1, length, HEADS, SIZE)
        found = ways(prompt, completion, k)
        times: dict[str, list[float]] = {name: [] for name in found}
        expected = found["dense mask"](*states)
        for turn in range(repeats + 1):
            for name, attend in found.items():
                for state in states:
                    state.grad = None
                start = time.process_time()
                output = attend(*states)
                output.backward(weight)
                if turn:
                    times[name].append(time.process_time() - start)
                else:
                    torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
        shown = ", ".join(f"{name} {1e3 * statistics.median(values):.1f} ms" for name, values in times.items())
        print(f"P={prompt} C={completion} K={k}: {shown}", flush=True)


if __name__ == "__main__":
    main()
