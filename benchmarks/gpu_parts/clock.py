"""Time, memory and FLOPs on either kind of device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_parts.rows import Setting

PEAK_TFLOPS = {
    "H100": 989.0,
    "H200": 989.0,
    "GH200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "B200": 2250.0,
    "4090": 165.0,
}
"""Dense bfloat16 with float32 sums, from data sheets, by a part of the card's name. The PCIe and NVL builds of H100 have less."""


def seconds(setting: Setting, run: Callable[[], object], repeats: int = 3) -> float:
    """Median wall-clock time of a call, the device's work included, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize(setting)
        start = time.perf_counter()
        run()
        synchronize(setting)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def synchronize(setting: Setting) -> None:
    if setting.cuda:
        torch.cuda.synchronize(setting.device)


def peak_gib(setting: Setting, run: Callable[[], object]) -> float | None:
    """Most memory that a call held above what was held before, in GiB; None without CUDA, whose allocator counts it."""
    if not setting.cuda:
        run()
        return None
    synchronize(setting)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    run()
    synchronize(setting)
    return (torch.cuda.max_memory_allocated(setting.device) - before) / 2**30


def matmul_flops(run: Callable[[], object]) -> int:
    """FLOPs of all matrix products and convolutions of a call, backward included, as torch counts them; attention is left out."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if "attention" not in str(operator))


def peak_flops(setting: Setting) -> float | None:
    """Of the card per second, in bfloat16; None if the card is not in the table."""
    name = torch.cuda.get_device_name(setting.device) if setting.cuda else ""
    return next((1e12 * value for part, value in PEAK_TFLOPS.items() if part in name), None)
