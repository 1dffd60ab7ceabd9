"""Estimates of KL(policy ‖ reference) from sampled tokens (J. Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from collections.abc import Callable

from boresight.types import PerToken

Divergence = Callable[[PerToken, PerToken], PerToken]


def k1(policy: PerToken, reference: PerToken) -> PerToken:
    """lp − lp_ref: unbiased, of either sign. Its gradient has mean zero, so it has an effect only in the `unbiased` form."""
    return policy - reference


def k2(policy: PerToken, reference: PerToken) -> PerToken:
    """½(lp − lp_ref)²: never negative; its on-policy gradient is that of the KL."""
    return (policy - reference).square() / 2


def k3(policy: PerToken, reference: PerToken) -> PerToken:
    """exp(lp_ref − lp) − (lp_ref − lp) − 1: unbiased and never negative (GRPO, arXiv 2402.03300, eq. 4)."""
    gap = reference - policy
    return gap.expm1() - gap


def unbiased(divergence: PerToken, token_log_ratio: PerToken) -> PerToken:
    """r_t · divergence, with gradient through r_t; for k3 it is that of the reverse KL (DeepSeek-V3.2, arXiv 2512.02556)."""
    return token_log_ratio.exp() * divergence


DIVERGENCES: dict[str, Divergence] = {"k1": k1, "k2": k2, "k3": k3}
"""`kl_estimator` → divergence."""
