"""A check that the dtype of the weights resolves updates of the learning rate's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from boresight.errors import ConfigError
from boresight.families import Part, family_of
from boresight.model.part_options import PartPlan
from boresight.modules import unwrap
from boresight.trainer.stochastic_rounding import rounds_stochastically

WEIGHTS_PER_TENSOR = 4096
"""Number of checked weights of each parameter, evenly spaced."""
LEAST_SHARE = 0.5
"""Minimum share of the weights that a step must be able to change."""


def check_resolution(model: nn.Module, args: Any, plan: PartPlan | None = None) -> None:
    """Refuse to train weights if a step would leave most of them unchanged.

    An update under Adam is about as large as the learning rate. An update below half the distance to the next value of the dtype is
    rounded away: bf16 weights realise 2 % of the intended change in 100 steps at a learning rate of 1e-6, and 16 % at 1e-5. The steps of
    other optimizers depend on their gradients, which are not known yet; the unchanged share is measured during training instead.

    With stochastic rounding, weights of bf16 move on average as far as they should, and none is refused.

    Raises:
        ConfigError: too few weights would change; the message states the share and the fixes. Or stochastic rounding has nothing to round.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if rounds_stochastically(args):
        if dtypes != {torch.bfloat16}:
            named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "none"
            raise ConfigError(
                f"bf16_stochastic_round=True rounds bfloat16 weights, and the trained weights are {named}: load them in bfloat16 "
                "(--dtype bfloat16, model_init_kwargs={'dtype': 'bfloat16'}), or drop it. An adapter's weights are float32 in any case."
            )
        return
    if "adam" not in str(args.optim).lower():
        return
    rates = _rates(model, plan)
    coarse: dict[Any, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            coarse.setdefault(rates.get(name, args.learning_rate), []).append(parameter)
    for rate, parameters in coarse.items():
        if rate > 0:
            _check_rate(parameters, rate)


def _rates(model: nn.Module, plan: PartPlan | None) -> dict[str, float]:
    """Name of a parameter → the learning rate of its part, for parts that have their own."""
    if plan is None or not plan.lr:
        return {}
    family = family_of(unwrap(model).config.model_type)
    part_of: dict[str, Part] = {name: family.part(name) for name, _ in model.named_parameters()}
    return {name: plan.lr[part] for name, part in part_of.items() if part in plan.lr}


def _check_rate(parameters: list[nn.Parameter], rate: float) -> None:
    moved = torch.cat([_moves(parameter.detach(), rate) for parameter in parameters])
    share = float(moved.float().mean())
    if share < LEAST_SHARE:
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        raise ConfigError(
            f"learning_rate={rate:g} is below the resolution of {dtype} weights: at most {share:.0%} of them would change. "
            "All other updates would be rounded away. Leave dtype unset, so that trained weights are float32 (bf16=True still computes in "
            "bfloat16), round stochastically (bf16_stochastic_round), train an adapter (use_peft), or raise learning_rate."
        )


def _moves(parameter: Tensor, step: float) -> Tensor:
    """True for each of a parameter's weights that a step of this size changes, up or down."""
    weights = parameter.flatten()[:: max(1, parameter.numel() // WEIGHTS_PER_TENSOR)]
    exact = weights.double()
    return ((exact + step).to(weights.dtype) != weights) | ((exact - step).to(weights.dtype) != weights)
