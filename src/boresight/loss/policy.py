"""Policy-gradient objectives as rows of a table: ratio × surrogate × aggregate (+ divergence, + sampler correction).

    L = Σ weight · (ρ · surrogate + β · divergence) / total  −  entropy_coef · mean entropy

A new objective is one pure function in `surrogate.py` and one row of `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boresight.errors import ShapeError
from boresight.loss import surrogate
from boresight.loss.aggregate import CONSTANT, SEQUENCE_MEAN, SEQUENCE_SUM, TOKEN_MEAN, Aggregate, Scalar, aggregated
from boresight.loss.aggregate import sequence_weights, token_weights
from boresight.loss.correction import correction_weights, on_policy_enough, token_log_rho
from boresight.loss.divergence import DIVERGENCES, unbiased
from boresight.loss.policy_config import PolicyLossConfig, check_policy_loss, resolved
from boresight.loss.ratio import RATIOS, Ratio, detached, over_tokens, token_log_ratio
from boresight.types import Mask, PerSequence, PerToken

__all__ = [
    "OBJECTIVES", "Objective", "PolicyLoss", "PolicyLossConfig", "check_policy_loss", "counted_mask",
    "high_entropy_threshold", "policy_loss", "policy_objective", "policy_total",
]  # fmt: skip

Metric = tuple[Scalar, Scalar]
PolicyTotal = Float[Tensor, "2"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a surrogate may read. Padding holds zeros, in `correction` ones."""

    log_ratio: PerToken
    policy: PerToken
    advantage: PerSequence
    mask: Mask
    correction: PerToken | None


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of the table."""

    ratio: Ratio
    surrogate: Callable[[Terms, PolicyLossConfig], PerToken]
    aggregate: Aggregate
    diagnostics: Callable[[Terms, PolicyLossConfig], dict[str, PerToken]]
    """Quantities worth logging under TRL's names, per token, to be averaged."""
    per_sequence: bool = False
    """Whether the diagnostics are one value per completion, so that each completion weighs the same in their mean."""
    corrects_itself: bool = False
    """Whether the surrogate has used the sampler correction already."""


def _clipped(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.clipped(terms.log_ratio, terms.advantage, config.epsilon, _epsilon_high(config), config.delta)


def _clip_shares(terms: Terms, low: float, high: float) -> dict[str, PerToken]:
    advantage = terms.advantage[:, None]
    is_low = (terms.log_ratio < low) & (advantage < 0)
    is_high = (terms.log_ratio > high) & (advantage > 0)
    return {
        "clip_ratio/low_mean": is_low.float(),
        "clip_ratio/high_mean": is_high.float(),
        "clip_ratio/region_mean": (is_low | is_high).float(),
    }
