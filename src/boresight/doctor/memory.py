"""The memory that a piece of work takes, and that a device has."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_bytes(device: torch.device, work: Callable[[], object]) -> int:
    """The most memory that is taken while a function runs: on CUDA by tensors, on a CPU by the whole process."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    _forget_peak()
    work()
    return _peak_of_process()


def available_bytes(device: torch.device) -> int | None:
    """The most memory that this process may take; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [int(text) for path in _CGROUP if (text := _read(path).strip()).isdigit()]
    meminfo = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    if "MemAvailable" in meminfo:
        limits.append(1024 * int(meminfo["MemAvailable"].split()[0]) + _status("VmRSS"))
    return min(limits, default=None)


def fitting_groups(one: int, two: int, limit: int, most: int) -> int:
    """How many groups fit in memory, if each takes as much as the second did. 0: not even one.

    Args:
        one, two: bytes taken with one and with two groups.
        limit: bytes that there are.
        most: groups of interest.
    """
    if one > limit:
        return 0
    each = two - one
    return most if each <= 0 else min(most, 1 + (limit - one) // each)


def _forget_peak() -> None:
    """Linux keeps the peak of a process, and starts anew when asked so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system, or not allowed: the peak is then that of the process so far
        return


def _peak_of_process() -> int:
    if peak := _status("VmHWM"):
        return peak
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _status(name: str) -> int:
    """Bytes of an entry of this process's status; 0 where there is none."""
    lines = (line.split() for line in _read("/proc/self/status").splitlines())
    return next((1024 * int(words[1]) for words in lines if words and words[0] == f"{name}:"), 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
