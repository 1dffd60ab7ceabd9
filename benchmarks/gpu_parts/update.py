"""Forward and backward of a policy-gradient loss with models of published sizes: time, memory, and the share of the card's FLOPs.

Weights and gradients are in the setting's dtype, and no optimizer runs: its time and memory are the same in every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch

from boresight.model.forward import GroupForward
from boresight.modules import checkpoint_activations
from boresight.types import Group
from gpu_parts.clock import matmul_flops, peak_flops, peak_gib, seconds
from gpu_parts.models import MODELS, Built, attention_flops, build
from gpu_parts.rows import Case, Figures, Setting

K = 8
UTILISATION_GOAL = 0.40


def run(setting: Setting) -> Iterator[Case]:
    one = cache(partial(build, setting=setting))
    for model in MODELS:
        for tokens in (4, 6) if setting.tiny else (256, 1024):
            yield f"{model}, C={tokens}, shared", partial(measure, setting, one, model, tokens, "shared", False)
        tokens = 4 if setting.tiny else 256
        yield (
            f"{model}, C={tokens}, shared, checkpointing",
            partial(measure, setting, one, model, tokens, "shared", True),
        )
        yield f"{model}, C={tokens}, rows, checkpointing", partial(measure, setting, one, model, tokens, "rows", True)
        one.cache_clear()


def measure(
    setting: Setting, build_once: Callable[[str], Built], model: str, tokens: int, layout: str, checkpointing: bool
) -> Figures:
    """Figures of one update of K completions. Without checkpointing also the utilisation: recomputed FLOPs are not useful ones."""
    built = build_once(model)
    group = built.group(K, tokens)
    forward = GroupForward(built.model, built.facts, layout=layout)
    switch(built, checkpointing)
    step = partial(update, forward, group)
    taken = seconds(setting, step)
    figures: Figures = {
        "P": len(group.prompt.ids),
        "seconds": taken,
        "completion tokens/s": group.num_completion_tokens / taken,
        "peak GiB above weights and gradients": peak_gib(setting, step),
    }
    if layout == "shared" and not checkpointing:
        flops = matmul_flops(step) + attention_flops(built.model.config, group)
        figures |= {"TFLOP counted": flops / 1e12, "TFLOP/s": flops / taken / 1e12}
        if peak := peak_flops(setting):
            figures |= {"FLOP utilisation": flops / taken / peak, "its goal": UTILISATION_GOAL}
    built.model.zero_grad(set_to_none=True)
    return figures


def switch(built: Built, checkpointing: bool) -> None:
    built.model.train(checkpointing)  # transformers checkpoints in training mode alone; nothing here drops out
    if checkpointing:
        checkpoint_activations(built.model, {"use_reentrant": False})
    else:
        built.model.gradient_checkpointing_disable()


def update(forward: GroupForward, group: Group) -> None:
    """Gradients of the mean of advantage × log-probability, as of GRPO with fresh samples. They are kept, and zeroed first."""
    forward.outer.zero_grad(set_to_none=False)
    forward.vision.clear()
    logp = forward([group]).logp
    advantages = torch.linspace(-1.0, 1.5, len(group), device=logp.device)
    (-(logp - logp.detach()).exp() * advantages[:, None]).mean().backward()
