"""AdamW that trains bf16 weights by stochastic rounding: an update below their resolution is made with a probability of its size.

On average, a weight then moves as far as a float32 weight would. Zamirai et al., Revisiting BFloat16 Training, arXiv 2010.06192; the
optimizers are torchao's.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from boresight.errors import ConfigError

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_torch_8bit", "adamw_torch_4bit")
"""Values of `optim` that have a stochastic form. The first two are the same here."""


def rounds_stochastically(args: Any) -> bool:
    """Whether the options ask for stochastic rounding, by boresight's option or by transformers' `optim_args`."""
    words = str(getattr(args, "optim_args", None) or "").replace(" ", "").lower().split(",")
    return bool(getattr(args, "bf16_stochastic_round", False)) or "bf16_stochastic_round=true" in words


def stochastic_optimizer(args: Any) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """torchao's optimizer for the options, and its arguments.

    Raises:
        ConfigError: `optim` has no stochastic form, or torchao is missing.
    """
    name = str(getattr(args.optim, "value", args.optim))
    if name not in OPTIMIZERS:
        raise ConfigError(f"bf16_stochastic_round=True needs optim={' or '.join(OPTIMIZERS)}, and it is {name!r}.")
    try:
        from torchao import optim  # an optional extra
    except ImportError as error:
        raise ConfigError("bf16_stochastic_round=True needs torchao: pip install 'boresight[torchao]'") from error
    kinds: dict[str, Any] = {"adamw_torch_8bit": optim.AdamW8bit, "adamw_torch_4bit": optim.AdamW4bit}
    options = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return kinds.get(name, optim._AdamW), {**options, "bf16_stochastic_round": True}


def uncompiled_on_cpu(optimizer: Any) -> Any:
    """The optimizer, whose step is not compiled where all its weights are on a CPU: compiling takes half a minute there, and gains little.

    torchao compiles every step. Other optimizers are returned as they are.
    """
    if not type(optimizer).__module__.startswith("torchao."):
        return optimizer
    on_cpu = all(weight.device.type == "cpu" for group in optimizer.param_groups for weight in group["params"])
    step = optimizer.step

    def eager(*arguments: Any, **options: Any) -> Any:
        with torch.compiler.set_stance("force_eager") if on_cpu else nullcontext():
            return step(*arguments, **options)

    optimizer.step = eager
    return optimizer
