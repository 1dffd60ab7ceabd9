"""Time, memory and work of a run."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median of paired ratios, and how far they spread."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Of runs that alternated: the n-th of one against the n-th of the other."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], repeats: int, *, before: Callable[[], object] = lambda: None) -> float:
    """Median wall-clock time, after one call to warm up. `before` runs untimed before each."""
    times = []
    for _ in range(repeats + 1):
        before()
        times.append(seconds(run))
    return statistics.median(times[1:])


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that torch held at once during a call, above what it held before.

    Every allocation and release that torch's CPU allocator reports to its profiler is added up: temporaries inside operators are among
    them, memory that the C library keeps for later is not. What oneDNN and OpenMP allocate for themselves is missed on both sides.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        run()
    result: Any = recorded.profiler
    events: Iterable[Any] = result.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def counted_work(models: Sequence[nn.Module]) -> Iterator[Counter[str]]:
    """Count what really runs through towers, language models and heads of both sides' models: images, tokens, and those of
    them that a gradient is taken of.

    Hooks sit on transformers' own modules, so nobody's book-keeping is believed. Recomputation under gradient checkpointing is inside the
    tower and is not seen.
    """
    counts: Counter[str] = Counter()

    def tower(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        counts["encodes"] += len(options["grid_thw"] if "grid_thw" in options else args[1])

    def language(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens = options["inputs_embeds"].shape[:2].numel()
        counts["tokens"] += tokens
        counts["gradient_tokens"] += tokens * torch.is_grad_enabled()

    hooks = []
    for model in models:
        base: Any = getattr(model, "base_model", model)
        hooks += [
            base.visual.register_forward_pre_hook(tower, with_kwargs=True),
            base.language_model.register_forward_pre_hook(language, with_kwargs=True),
        ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
