"""Diagnostics of the objectives under TRL's names: ``Float[Tensor, "B T"]`` by name, to be averaged over tokens or completions."""

from __future__ import annotations

import math

from boresight.loss.policy_options import PolicyLossOptions, upper_epsilon
from boresight.loss.ratio import detached, over_tokens
from boresight.loss.surrogate import Terms, vespo_weight
from boresight.types import PerToken


def _clip_shares(terms: Terms, low: float, high: float) -> dict[str, PerToken]:
    ratio, advantage = detached(terms.log_ratio), terms.advantage[:, None]
    is_low, is_high = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)
    return {
        "clip_ratio/low_mean": is_low.float(),
        "clip_ratio/high_mean": is_high.float(),
        "clip_ratio/region_mean": (is_low | is_high).float(),
    }


def clipped_shares(terms: Terms, config: PolicyLossOptions) -> dict[str, PerToken]:
    """1 where `clipped` clips the ratio at its lower bound, at its upper bound, and at either bound; else 0."""
    return _clip_shares(terms, 1 - config.epsilon, 1 + upper_epsilon(config))


def gmpo_shares(terms: Terms, config: PolicyLossOptions) -> dict[str, PerToken]:
    """As `clipped_shares`, for `gmpo`, whose bounds are e^±ε."""
    return _clip_shares(terms, math.exp(-config.gmpo_epsilon), math.exp(config.gmpo_epsilon))


def cispo_share(terms: Terms, config: PolicyLossOptions) -> dict[str, PerToken]:
    """1 where `cispo` caps the weight of a token with A > 0, else 0."""
    capped = (detached(terms.log_ratio) > upper_epsilon(config)) & (terms.advantage[:, None] > 0)
    return {"cispo_clip_ratio": capped.float()}


def vespo_weights(terms: Terms, config: PolicyLossOptions) -> dict[str, PerToken]:
    """φ of each completion, repeated over its tokens."""
    return {"vespo/phi_seq_mean": over_tokens(vespo_weight(terms, config), terms.mask)}
