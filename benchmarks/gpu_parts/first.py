"""The first minute: what is installed, what the card does, and whether merged attention is exact and fast on it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from boresight.model.attention import BranchTable, padded_attention
from boresight.model.flash_kernels import CpuKernel, CudaKernel, flash_kernel
from boresight.model.forward import GroupForward
from boresight.model.merged_attention import merged_attention
from boresight.model.packing import GroupSpan, PackedRow
from gpu_parts.clock import peak_gib, seconds
from gpu_parts.models import build
from gpu_parts.rows import BoundError, Case, Figures, LackingError, Setting

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "pyarrow", "trl", "vllm", "bitsandbytes")

Shape = tuple[tuple[int, tuple[int, ...]], ...]
"""Prompt and branches of each group."""
LARGE: dict[str, Shape] = {
    "P=1300 C=256 K=8": ((1300, (256,) * 8),),
    "P=1300 C=1024 K=8": ((1300, (1024,) * 8),),
    "four groups, uneven": tuple((300 + 97 * n, (31, 128, 200, 1)) for n in range(4)),
}
SMALL: dict[str, Shape] = {"P=19 C=5 K=3": ((19, (5,) * 3),), "two groups, uneven": ((7, (3, 1)), (9, (2, 4, 1)))}
HEADS = {"Qwen2.5-VL-3B": (16, 2, 128), "Qwen3-VL-4B": (32, 8, 128)}
"""Query heads, key heads, features."""


def run(setting: Setting) -> Iterator[Case]:
    yield "versions", partial(versions, setting)
    yield "kernel", partial(kernel, setting)
    for name, shape in (SMALL if setting.tiny else LARGE).items():
        yield f"merged attention, {name}: exact", partial(exact, setting, shape, None)
        yield (
            f"merged attention, {name}, window of 100: exact",
            partial(exact, setting, shape, 4 if setting.tiny else 100),
        )
    yield "a small model, shared and rows", partial(layouts, setting)
    yield "matrix products", partial(products, setting)
    for name, shape in (SMALL if setting.tiny else LARGE).items():
        yield f"merged attention, {name}: cost per layer", partial(cost, setting, shape)


def versions(setting: Setting) -> Figures:
    found: Figures = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if setting.cuda:
        properties = torch.cuda.get_device_properties(setting.device)
        found |= {"card": properties.name, "memory GiB": properties.total_memory / 2**30, "CUDA": torch.version.cuda}
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(setting.device)))
    return found


def kernel(setting: Setting) -> Figures:
    """Which kernel a packed row would run in, for every head size of published models."""
    found: Figures = {}
    for size in (64, 80, 96, 128, 256):
        states = torch.zeros(1, 2, 2, size, dtype=setting.dtype, device=setting.device)
        chosen = flash_kernel(states, states)
        found[f"heads of {size}"] = chosen if isinstance(chosen, str) else type(chosen).__name__
    if setting.cuda and found["heads of 128"] != CudaKernel.__name__:
        raise BoundError("merged attention does not run on this card", found)
    return found


def states_of(setting: Setting, shape: Shape, heads: tuple[int, int, int]) -> tuple[BranchTable, list[Tensor], Tensor]:
    """A row's table, its query, key and value, and a gradient of the output."""
    spans, start = [], 0
    for prompt, branches in shape:
        spans.append(GroupSpan(start, prompt, branches))
        start += prompt + sum(branches)
    nothing = torch.zeros(start, dtype=torch.long)
    row = PackedRow(tuple(spans), nothing, nothing, nothing, nothing, nothing, nothing[None].bool())
    query, keys, size = heads
    torch.manual_seed(0)
    draw = partial(torch.randn, device=setting.device, dtype=setting.dtype)
    states = [draw(1, start, number, size).transpose(1, 2).requires_grad_() for number in (query, keys, keys)]
    return BranchTable.of(row).to(setting.device), states, draw(1, start, query, size)


def ways(setting: Setting, table: BranchTable, window: int | None) -> dict[str, Callable[..., Tensor]]:
    own = CudaKernel() if setting.cuda else CpuKernel()

    def merged(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return merged_attention(query, key, value, table.pieces(window), own, query.shape[-1] ** -0.5)

    def two_calls(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return padded_attention(query, key, value, table, query.shape[-1] ** -0.5, window)

    return {"merged": merged, "two SDPA calls": two_calls}


def exact(setting: Setting, shape: Shape, window: int | None) -> Figures:
    """Largest error of output and gradients against float32, of both ways in the setting's dtype, relative to the largest entry."""
    figures: Figures = {}
    for model, heads in HEADS.items():
        table, states, grad = states_of(setting, shape, heads)
        both = ways(setting, table, window)
        wide = [state.detach().float().requires_grad_() for state in states]
        expected = _with_gradients(both["two SDPA calls"], wide, grad.float())
        for name, attend in both.items():
            found = _with_gradients(attend, states, grad)
            errors = [
                ((one.float() - two).abs().max() / two.abs().max()).item()
                for one, two in zip(found, expected, strict=True)
            ]
            figures[f"{model}, {name}"] = max(errors)
        limit = max(2 * float(figures[f"{model}, two SDPA calls"] or 0), 1e-5)
        if not float(figures[f"{model}, merged"] or 0) <= limit:
            raise BoundError(f"merged attention is off by more than {limit:.1e}", figures)
    return figures


def _with_gradients(attend: Callable[..., Tensor], states: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = attend(*states)
    return [out.detach(), *torch.autograd.grad(out, states, grad)]


def layouts(setting: Setting) -> Figures:
    """A tiny model's log-probabilities in both layouts, in float32 and in the setting's dtype."""
    figures: Figures = {}
    for dtype in {torch.float32, setting.dtype}:
        built = build("Qwen2.5-VL-3B", Setting(setting.device, tiny=True))
        built.model.to(dtype)
        group = built.group(4, 9)
        with torch.no_grad():
            shared, rows = (
                GroupForward(built.model, built.facts, layout=name)([group]).logp for name in ("shared", "rows")
            )
        figures[f"largest difference in {dtype}, nats".replace("torch.", "")] = (shared - rows).abs().max().item()
    if not float(figures["largest difference in float32, nats"] or 0) <= 1e-3:
        raise BoundError("the two layouts differ", figures)
    return figures


def products(setting: Setting) -> Figures:
    """What the card reaches: the bound of every utilisation below."""
    size = 256 if setting.tiny else 8192
    one, other = (torch.randn(size, size, device=setting.device, dtype=setting.dtype) for _ in range(2))
    return {"TFLOP/s": 2 * size**3 / seconds(setting, lambda: one @ other, 10) / 1e12, "size": size}


def cost(setting: Setting, shape: Shape) -> Figures:
    """Forward and backward of one layer, both ways: milliseconds and peak memory."""
    if not setting.cuda and not setting.tiny:
        raise LackingError("needs CUDA")
    figures: Figures = {}
    for model, heads in HEADS.items():
        table, states, grad = states_of(setting, shape, heads)
        for name, attend in ways(setting, table, None).items():
            work = partial(_with_gradients, attend, states, grad)
            figures[f"{model}, {name}, ms"] = 1e3 * seconds(setting, work, 5)
            figures[f"{model}, {name}, peak GiB"] = peak_gib(setting, work)
    return figures
