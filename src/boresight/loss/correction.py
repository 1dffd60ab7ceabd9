"""The correction for the gap between the sampler's log-probabilities and the trainer's under the same weights.

$\\rho = \\exp(lp_{old} - lp_{sampler})$ multiplies the surrogate, detached. If the sampler uses other kernels or another
precision, ρ differs from one even when the training is on-policy.
"""

from __future__ import annotations

import torch

from boresight.loss.ratio import lengths, over_tokens
from boresight.types import Mask, PerSequence, PerToken

MAX_LOG_RHO = 20.0


def token_log_rho(old: PerToken, sampler: PerToken, mask: Mask) -> PerToken:
    """log ρ_t of each token, zero in the padding and where the sampler could not report a log-probability (NaN)."""
    return (old - sampler).detach().masked_fill(~mask | sampler.isnan(), 0.0)


def sequence_log_rho(old: PerToken, sampler: PerToken, mask: Mask) -> PerToken:
    """log Π ρ_t, repeated over the tokens. A drift of 10 % per token is 2.6 at 10 tokens and 13,780 at 100."""
    return over_tokens(token_log_rho(old, sampler, mask).sum(-1), mask)


def geometric_log_rho(old: PerToken, sampler: PerToken, mask: Mask) -> PerToken:
    """log (Π ρ_t)^{1/T}, repeated over the tokens: the drift of the completion, independent of its length."""
    return over_tokens(token_log_rho(old, sampler, mask).sum(-1) / lengths(mask), mask)


def truncated(rho: PerToken, low: float | None, high: float | None) -> PerToken:
    """ρ clamped to [low, high]: truncated importance sampling (TIS)."""
    return rho.clamp(low, high) if low is not None or high is not None else rho


def banded(rho: PerToken, low: float | None, high: float | None) -> PerToken:
    """ρ within [low, high], 0 outside: masked importance sampling (MIS)."""
    outside = torch.zeros_like(rho, dtype=torch.bool)
    if low is not None:
        outside |= rho < low
    if high is not None:
        outside |= rho > high
    return rho.masked_fill(outside, 0.0)


LOG_RHO = {"token": token_log_rho, "sequence": sequence_log_rho, "geometric": geometric_log_rho}
BOUND = {"truncate": truncated, "mask": banded}
CORRECTIONS = {f"{over}_{bound}": (LOG_RHO[over], BOUND[bound]) for over in LOG_RHO for bound in BOUND}
"""`vllm_importance_sampling_mode` → (log ρ, bound). Four modes are TRL's; two use the geometric mean."""


def correction_weights(
    mode: str, old: PerToken, sampler: PerToken, mask: Mask, low: float | None, high: float | None
) -> PerToken:
    """The weight of each token under one of `CORRECTIONS`, one in the padding. No gradient."""
    log_rho, bound = CORRECTIONS[mode]
    rho = log_rho(old, sampler, mask).clamp(-MAX_LOG_RHO, MAX_LOG_RHO).exp()
    return bound(rho, low, high).masked_fill(~mask, 1.0)


def on_policy_enough(
    policy: PerToken, sampler: PerToken, advantage: PerSequence, mask: Mask, threshold: float
) -> PerSequence:
    """0 for completions with A < 0 whose log-probability has dropped by over `threshold` nats per token, else 1.

    Reference:
        DeepSeek-V3.2, arXiv 2512.02556, eq. 9. TRL: ``off_policy_mask_threshold``.
    """
    departure = -token_log_rho(policy, sampler, mask).sum(-1) / lengths(mask)
    return ((advantage >= 0) | (departure <= threshold)).to(policy.dtype)
