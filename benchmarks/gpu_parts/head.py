"""The language-model head in chunks against all logits at once: time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from boresight.model.head import MAX_LOGIT_BYTES, Head, token_logp
from gpu_parts.clock import peak_gib, seconds
from gpu_parts.rows import BoundError, Case, Figures, Setting


def run(setting: Setting) -> Iterator[Case]:
    yield "chunked, and all at once", partial(compare, setting)


def compare(setting: Setting) -> Figures:
    """Forward and backward of the log-probabilities of 2,048 tokens, for the head of a 3B model."""
    tokens, width, words = (16, 32, 500) if setting.tiny else (2048, 2048, 151936)
    torch.manual_seed(0)
    project = nn.Linear(width, words, bias=False, device=setting.device, dtype=setting.dtype)
    hidden = torch.randn(tokens, width, device=setting.device, dtype=setting.dtype, requires_grad=True)
    targets = torch.randint(words, (tokens,), device=setting.device)
    figures: Figures = {"tokens": tokens, "vocabulary": words}
    results = {}
    for name, limit in {"chunked": 2**14 if setting.tiny else MAX_LOGIT_BYTES, "at once": 2**62}.items():

        def work(limit: int = limit) -> torch.Tensor:
            hidden.grad = None
            logp = token_logp(Head(project), hidden, targets, max_logit_bytes=limit).logp
            logp.sum().backward()
            return logp.detach()

        figures |= {f"{name}, ms": 1e3 * seconds(setting, work), f"{name}, peak GiB": peak_gib(setting, work)}
        results[name] = work()
    difference = (results["chunked"] - results["at once"]).abs().max().item()
    figures["largest difference, nats"] = difference
    if difference > 1e-3:
        raise BoundError("chunks change log-probabilities", figures)
    return figures
