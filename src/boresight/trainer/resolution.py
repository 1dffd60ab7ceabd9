"""Weights too coarse for the steps they are to take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boresight.errors import ConfigError

WEIGHTS_PER_TENSOR = 4096
"""Looked at of each parameter, evenly spaced."""
LEAST_SHARE = 0.5
"""Of the weights that a step must be able to move."""


def check_resolution(model: nn.Module, args: Any) -> None:
    """Refuse to train weights of which a step leaves most as they are.

    An update under Adam is about as large as the learning rate, and one below half the distance to a weight's neighbour in its dtype is
    rounded away: bf16 weights realise 2 % of the wanted movement in 100 steps at a learning rate of 1e-6, and 16 % at 1e-5. Other
    optimizers' steps are as large as their gradients, which nobody knows yet; what these leave unmoved is measured during training.

    Raises:
        ConfigError: with the share, and the ways out.
    """
    if "adam" not in str(args.optim).lower():
        return
    coarse = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16)
    ]
    if not coarse or args.learning_rate <= 0:
        return
    moved = torch.cat([_moves(parameter.detach(), args.learning_rate) for parameter in coarse])
    share = float(moved.float().mean())
    if share < LEAST_SHARE:
        dtype = str(coarse[0].dtype).removeprefix("torch.")
        raise ConfigError(
            f"learning_rate={args.learning_rate:g} is below the resolution of {dtype} weights: at most {share:.0%} of them would move, the "
            "other updates are rounded away. Leave dtype unset, so that trained weights are float32 (bf16=True still computes in "
            "bfloat16), train an adapter (use_peft), or raise learning_rate."
        )


def _moves(parameter: Tensor, step: float) -> Tensor:
    """Which of a parameter's weights a step of this size changes, up or down."""
    weights = parameter.flatten()[:: max(1, parameter.numel() // WEIGHTS_PER_TENSOR)]
    exact = weights.double()
    return ((exact + step).to(weights.dtype) != weights) | ((exact - step).to(weights.dtype) != weights)
