"""Log importance ratios of the policy to the old policy.

Every function takes log-probabilities in nats and a mask, and returns ``Float[Tensor, "B T"]``. The result is zero where
the mask is false, so values in the padding are ignored.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from boresight.types import Mask, PerSequence, PerToken

Ratio = Callable[[PerToken, PerToken, Mask], PerToken]


def lengths(mask: Mask) -> PerSequence:
    """Number of tokens that count in each completion. The minimum is 1, so that it can be a divisor; empty completions have weight 0."""
    return mask.sum(-1).clamp(min=1).float()


def over_tokens(value: PerSequence, mask: Mask) -> PerToken:
    """One value per completion, repeated over its tokens; zero where the mask is false."""
    return value[:, None] * mask


def token_log_ratio(policy: PerToken, old: PerToken, mask: Mask) -> PerToken:
    r"""$\log r_t = \log\pi_\theta(y_t) - \log\pi_{old}(y_t)$ of each token (PPO, arXiv 1707.06347)."""
    return (policy - old).masked_fill(~mask, 0.0)


def sequence_log_ratio(policy: PerToken, old: PerToken, mask: Mask) -> PerToken:
    r"""Length-normalised log ratio of each completion, repeated over its tokens.

    $\log s_i = \frac{1}{|y_i|}\sum_t \log r_{i,t}$

    Reference:
        Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071, eq. 7. TRL:
        ``importance_sampling_level="sequence"``.
    """
    return over_tokens(token_log_ratio(policy, old, mask).sum(-1) / lengths(mask), mask)


def sequence_sum_log_ratio(policy: PerToken, old: PerToken, mask: Mask) -> PerToken:
    """Log ratio of each whole completion, not divided by its length, repeated over its tokens (RLOO, arXiv 2402.14740)."""
    return over_tokens(token_log_ratio(policy, old, mask).sum(-1), mask)


def sequence_token_log_ratio(policy: PerToken, old: PerToken, mask: Mask) -> PerToken:
    r"""GSPO-token: the value of the sequence ratio, the gradient of each token's own log-probability.

    $\log s_{i,t} = sg[\log s_i] + \log\pi_\theta(y_t) - sg[\log\pi_\theta(y_t)]$

    Reference:
        Zheng et al., arXiv 2507.18071, § 4.3.
    """
    return sequence_log_ratio(policy, old, mask).detach() + token_log_ratio(policy, policy.detach(), mask)


RATIOS: dict[str, Ratio] = {
    "token": token_log_ratio,
    "sequence": sequence_log_ratio,
    "sequence_sum": sequence_sum_log_ratio,
    "sequence_token": sequence_token_log_ratio,
}
"""`importance_sampling_level` → ratio."""


def detached(log_ratio: PerToken) -> Tensor:
    """The ratio itself, without gradient, for metrics and fixed weights."""
    return log_ratio.detach().exp()
