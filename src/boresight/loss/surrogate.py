"""Surrogate losses: what each token adds, given its log ratio and its completion's advantage. To be minimised.

The gradient of each, where the policy is still the one that sampled, is REINFORCE's: −A ∇ log π. (SAPO's too: its gate
has slope one there.)
"""

from __future__ import annotations

import math

import torch

from boresight.loss.ratio import detached, lengths, over_tokens
from boresight.types import Mask, PerSequence, PerToken


def clipped(
    log_ratio: PerToken, advantage: PerSequence, epsilon: float, epsilon_high: float, delta: float | None = None
) -> PerToken:
    r"""PPO's pessimistic clip, $-\min(rA, \mathrm{clip}(r, 1-\epsilon, 1+\epsilon_{high})A)$.

    Args:
        delta: where given, also $r \le \delta$ for completions with A < 0, whose loss is otherwise unbounded.

    Reference:
        Schulman et al., arXiv 1707.06347, eq. 7; ε_high: DAPO, arXiv 2503.14476; δ: INTELLECT-2, arXiv 2505.07291.
    """
    ratio, advantage = log_ratio.exp(), advantage[:, None]
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = torch.where(advantage < 0, ratio.clamp(max=delta), ratio)
    return -torch.minimum(ratio * advantage, bounded * advantage)


def cispo(log_ratio: PerToken, advantage: PerSequence, policy: PerToken, cap: float) -> PerToken:
    r"""$-sg[\min(r, \epsilon_{max})]\,A \log\pi_\theta$: the weight is capped, no token loses its gradient.

    Reference:
        MiniMax-M1, arXiv 2506.13585; the cap of 5 is ScaleRL's, arXiv 2510.13786.
    """
    return -detached(log_ratio).clamp(max=cap) * advantage[:, None] * policy


def sapo(log_ratio: PerToken, advantage: PerSequence, temperature_pos: float, temperature_neg: float) -> PerToken:
    r"""$-\frac{4}{\tau}\sigma(\tau(r-1))A$: a soft gate in place of the clip, narrower where A ≤ 0.

    Reference:
        Soft Adaptive Policy Optimization, arXiv 2511.20347.
    """
    advantage = advantage[:, None]
    temperature = torch.where(advantage > 0, temperature_pos, temperature_neg).to(log_ratio.dtype)
    return -(4 / temperature) * torch.sigmoid(temperature * (log_ratio.exp() - 1)) * advantage


def gmpo(log_ratio: PerToken, advantage: PerSequence, mask: Mask, epsilon: float) -> PerToken:
    r"""$-A\,(\prod_t \hat r_t)^{1/|y|}$ with $\hat r_t$ clipped at $e^{\pm\epsilon}$ on the pessimistic side.

    One value per completion, repeated over its tokens.

    Reference:
        Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673; ε 0.4 in log space.
    """
    sign = advantage.sign()[:, None]
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-epsilon, epsilon))
    return over_tokens(-advantage * (pessimistic.sum(-1) / lengths(mask)).exp(), mask)


MIN_LOG_WEIGHT, MAX_LOG_WEIGHT = math.log(1e-8), 20.0


def vespo_weight(
    log_ratio: PerToken,
    advantage: PerSequence,
    correction: PerToken | None,
    k_pos: float,
    lambda_pos: float,
    k_neg: float,
    lambda_neg: float,
) -> PerSequence:
    r"""$\varphi(w) = w^k e^{\lambda(1-w)}$ of the completion's ratio $w = \prod_t r_t \rho_t$, without gradient.

    Args:
        log_ratio: of tokens, zero in the padding.
        correction: the sampler correction ρ of each token, one in the padding.

    Reference:
        VESPO, arXiv 2602.10693; bounds on log w as in TRL.
    """
    log_weight = log_ratio.detach().clamp(-20.0, 20.0).sum(-1)
    if correction is not None:
        log_weight = log_weight + correction.log().clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT).sum(-1)
    log_weight = log_weight.clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)
    k = torch.where(advantage >= 0, k_pos, k_neg).to(log_weight.dtype)
    decay = torch.where(advantage >= 0, lambda_pos, lambda_neg).to(log_weight.dtype)
    return (k * log_weight + decay * (1 - log_weight.exp())).exp()


def vespo(weight: PerSequence, advantage: PerSequence, policy: PerToken) -> PerToken:
    r"""$-\varphi A \log\pi_\theta$ with the weight of `vespo_weight` (VESPO, arXiv 2602.10693)."""
    return -(weight * advantage)[:, None] * policy
