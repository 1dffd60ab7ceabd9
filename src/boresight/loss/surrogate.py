"""Surrogate losses: the loss of each token, given its log ratio and its completion's advantage. They are minimised.

Every surrogate is a function of `Terms` and the options, and returns ``Float[Tensor, "B T"]`` in nats times advantage. On-policy, the
gradient of each is that of REINFORCE: −A ∇ log π. This includes SAPO, whose gate has slope one there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from boresight.loss.policy_options import PolicyLossOptions, upper_epsilon
from boresight.loss.ratio import detached, lengths, over_tokens
from boresight.types import Mask, PerSequence, PerToken


@dataclass(frozen=True, slots=True)
class Terms:
    """The inputs of a surrogate."""

    log_ratio: PerToken
    """[B, T] log of the importance ratio r, in nats, at the level that the options choose; zero in the padding."""
    policy: PerToken
    """[B, T] log-probabilities under the weights being trained, in nats; zero in the padding."""
    advantage: PerSequence
    """[B] the advantage A."""
    mask: Mask
    """[B, T] true where a token counts."""
    correction: PerToken | None = None
    """[B, T] the sampler correction ρ, one in the padding; None: no correction."""


def clipped(terms: Terms, config: PolicyLossOptions) -> PerToken:
    r"""PPO's pessimistic clip, $-\min(rA, \mathrm{clip}(r, 1-\epsilon, 1+\epsilon_{high})A)$.

    With `delta`, also $r \le \delta$ for completions with A < 0, whose loss is otherwise unbounded.

    Reference:
        Schulman et al., arXiv 1707.06347, eq. 7; ε_high: DAPO, arXiv 2503.14476; δ: INTELLECT-2, arXiv 2505.07291.
    """
    ratio, advantage = terms.log_ratio.exp(), terms.advantage[:, None]
    bounded = ratio.clamp(1 - config.epsilon, 1 + upper_epsilon(config))
    if config.delta is not None:
        ratio = torch.where(advantage < 0, ratio.clamp(max=config.delta), ratio)
    return -torch.minimum(ratio * advantage, bounded * advantage)


def cispo(terms: Terms, config: PolicyLossOptions) -> PerToken:
    r"""$-sg[\min(r, \epsilon_{high})]\,A \log\pi_\theta$: the weight is capped, and every token keeps its gradient.

    Reference:
        MiniMax-M1, arXiv 2506.13585; the cap of 5 is ScaleRL's, arXiv 2510.13786.
    """
    return -detached(terms.log_ratio).clamp(max=upper_epsilon(config)) * terms.advantage[:, None] * terms.policy


def sapo(terms: Terms, config: PolicyLossOptions) -> PerToken:
    r"""$-\frac{4}{\tau}\sigma(\tau(r-1))A$: a soft gate instead of the clip, narrower where A ≤ 0.

    Reference:
        Soft Adaptive Policy Optimization, arXiv 2511.20347.
    """
    advantage = terms.advantage[:, None]
    temperature = torch.where(advantage > 0, config.sapo_temperature_pos, config.sapo_temperature_neg)
    temperature = temperature.to(terms.log_ratio.dtype)
    return -(4 / temperature) * torch.sigmoid(temperature * (terms.log_ratio.exp() - 1)) * advantage


def gmpo(terms: Terms, config: PolicyLossOptions) -> PerToken:
    r"""$-A\,(\prod_t \hat r_t)^{1/|y|}$ with $\hat r_t$ clipped at $e^{\pm\epsilon}$ on the pessimistic side.

    One value per completion, repeated over its tokens.

    Reference:
        Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673; ε 0.4 in log space.
    """
    log_ratio, epsilon, sign = terms.log_ratio, config.gmpo_epsilon, terms.advantage.sign()[:, None]
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * log_ratio.clamp(-epsilon, epsilon))
    return over_tokens(-terms.advantage * (pessimistic.sum(-1) / lengths(terms.mask)).exp(), terms.mask)


MIN_LOG_WEIGHT, MAX_LOG_WEIGHT = math.log(1e-8), 20.0


def vespo_weight(terms: Terms, config: PolicyLossOptions) -> PerSequence:
    r"""$\varphi(w) = w^k e^{\lambda(1-w)}$ of each completion's ratio $w = \prod_t r_t \rho_t$, without gradient.

    Reference:
        VESPO, arXiv 2602.10693; bounds on log w as in TRL.
    """
    log_weight = terms.log_ratio.detach().clamp(-20.0, 20.0).sum(-1)
    if terms.correction is not None:
        log_weight = log_weight + terms.correction.log().clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT).sum(-1)
    log_weight = log_weight.clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)
    is_positive = terms.advantage >= 0
    k = torch.where(is_positive, config.vespo_k_pos, config.vespo_k_neg).to(log_weight.dtype)
    decay = torch.where(is_positive, config.vespo_lambda_pos, config.vespo_lambda_neg).to(log_weight.dtype)
    return (k * log_weight + decay * (1 - log_weight.exp())).exp()


def vespo(terms: Terms, config: PolicyLossOptions) -> PerToken:
    r"""$-\varphi A \log\pi_\theta$ with the weight of `vespo_weight` (VESPO, arXiv 2602.10693)."""
    return -(vespo_weight(terms, config) * terms.advantage)[:, None] * terms.policy
