"""Preference losses of one pair, as pure functions of `Pairs` and the options: ``Float[Tensor, "N"]``, to be minimised.

Throughout, s = Σ_t (lp − lp_ref) is an answer's log ratio in nats (`chosen`, `rejected`), `margin` is s_c − s_r (after the f-divergence,
where one is set), R = β s is the implicit reward, h = β · margin, and ε is `label_smoothing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from boresight.loss.preference_options import PreferenceLossOptions
from boresight.loss.ratio import lengths
from boresight.types import Mask, PerSequence, PerToken

PerPair = Float[Tensor, "N"]
Partners = Float[Tensor, "N 3"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The inputs of a preference loss; each [N], in nats."""

    chosen: PerPair
    """Log ratio of the chosen answer to the reference."""
    rejected: PerPair
    margin: PerPair
    """Chosen minus rejected, after the f-divergence."""
    mean_margin: PerPair
    """As `margin`, of the per-token means."""
    chosen_logp: PerPair
    """Sum over the chosen answer's tokens under the policy, each with weight 1."""
    chosen_length: PerPair
    """Tokens of the chosen answer, at least one."""
    policy_margin: PerPair
    """lp(chosen) − lp(rejected) under the policy."""
    partners: Partners
    """[N, 3] as `preference.aot_partners` returns; read only by coupled losses."""
    shift: float
    """δ, the running mean of rewards."""


def _logistic(margin: PerPair, config: PreferenceLossOptions) -> PerPair:
    h, epsilon = config.beta * margin, config.label_smoothing
    return -(1 - epsilon) * logsigmoid(h) - epsilon * logsigmoid(-h)


def sigmoid(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """−(1−ε) log σ(h) − ε log σ(−h). DPO, Rafailov et al., arXiv 2305.18290, eq. 7; ε: cDPO, Mitchell 2023."""
    return _logistic(pairs.margin, config)


def sigmoid_norm(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """`sigmoid` of the margin of per-token means. Tülu 3, Lambert et al., arXiv 2411.15124."""
    return _logistic(pairs.mean_margin, config)


def robust(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """[−(1−ε) log σ(h) + ε log σ(−h)] / (1−2ε): unbiased if a share ε of labels is flipped. arXiv 2403.00409."""
    h, epsilon = config.beta * pairs.margin, config.label_smoothing
    return (-(1 - epsilon) * logsigmoid(h) + epsilon * logsigmoid(-h)) / (1 - 2 * epsilon)


def hinge(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """max(0, 1 − h). SLiC-HF, Zhao et al., arXiv 2305.10425; RSO, arXiv 2309.06657."""
    return relu(1 - config.beta * pairs.margin)


def ipo(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """(s̄_c − s̄_r − 1/(2β))² with per-token means s̄. IPO, Azar et al., arXiv 2310.12036, eq. 17."""
    return (pairs.mean_margin - 1 / (2 * config.beta)).square()


def exo_pair(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """KL(σ(±h) ‖ (1−ε, ε)), with ε > 0. EXO, Ji et al., arXiv 2402.00856, eq. 16."""
    h, epsilon = config.beta * pairs.margin, config.label_smoothing
    win = h.sigmoid() * (logsigmoid(h) - math.log1p(-epsilon))
    lose = (-h).sigmoid() * (logsigmoid(-h) - math.log(epsilon))
    return win + lose


def nca_pair(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """−log σ(R_c) − ½ log σ(−R_c) − ½ log σ(−R_r). NCA, Chen et al., arXiv 2402.05369."""
    chosen, rejected = config.beta * pairs.chosen, config.beta * pairs.rejected
    return -logsigmoid(chosen) - logsigmoid(-chosen) / 2 - logsigmoid(-rejected) / 2


def bco_pair(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """−log σ(R_c − δ) − log σ(−(R_r − δ)), δ the mean reward. BCO, Jung et al., arXiv 2404.04656."""
    chosen, rejected = config.beta * pairs.chosen - pairs.shift, config.beta * pairs.rejected - pairs.shift
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo_hard(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """(s_c − 1/(2β))² + (s_r + 1/(2β))²: hard preferences (probability 1). SPPO, Wu et al., arXiv 2405.00675, eq. 4.7."""
    return (pairs.chosen - 0.5 / config.beta).square() + (pairs.rejected + 0.5 / config.beta).square()


def apo_zero(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """1 − σ(R_c) + σ(R_r): for chosen answers that are better than the policy's. APO, arXiv 2408.06266, eq. 7."""
    return 1 - (config.beta * pairs.chosen).sigmoid() + (config.beta * pairs.rejected).sigmoid()


def apo_down(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """σ(R_c) + 1 − σ(R_c − R_r): for chosen answers that are worse than the policy's. APO, arXiv 2408.06266, eq. 8."""
    return (config.beta * pairs.chosen).sigmoid() + 1 - (config.beta * (pairs.chosen - pairs.rejected)).sigmoid()


def discopop(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """Logistic and exponential loss, mixed with weight σ(h/τ). DiscoPOP, Lu et al., arXiv 2406.08414, eq. 5."""
    h = config.beta * pairs.margin
    blend = (h / config.discopop_tau).sigmoid()
    return -logsigmoid(h) * (1 - blend) + (-h).exp() * blend


def sft(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """−lp(y_c)/|y_c|: the mean over the tokens of the chosen answer. MPO, Wang et al., arXiv 2411.10442."""
    return -pairs.chosen_logp / pairs.chosen_length


def aot(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """Logistic loss of the policy's margin lp_c − lp_r minus the reference's of the same rank in the step. AOT, arXiv 2406.05882."""
    return _logistic(pairs.policy_margin - pairs.partners[:, 0], config)


def aot_unpaired(pairs: Pairs, config: PreferenceLossOptions) -> PerPair:
    """Logistic loss of each chosen answer against the rejected one of the same rank in the step. AOT, arXiv 2406.05882.

    Partners carry no gradient. A second term of value zero adds the gradient of the rejected answers.
    """
    loss = _logistic(pairs.chosen - pairs.partners[:, 1], config)
    mirrored = _logistic(pairs.partners[:, 2] - pairs.rejected, config)
    return loss + mirrored - mirrored.detach()


# ---- Parts of pairs -------------------------------------------------------------------------------------------------------------


def divergence_scores(log_ratio: PerSequence, config: PreferenceLossOptions) -> PerSequence:
    """f'(π/π_ref) of a log ratio, up to a constant: it replaces the log ratio in DPO's margin under another divergence.

    The α-divergence at α = 1 is the reverse KL.

    Reference:
        Wang et al., Beyond Reverse KL, arXiv 2309.16240. TRL: ``f_divergence_type``.
    """
    alpha = config.f_alpha_divergence_coef
    if config.f_divergence_type == "forward_kl":
        return 1 - (-log_ratio).clamp(max=80.0).exp()
    if config.f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if config.f_divergence_type == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return ((alpha - 1) * log_ratio).clamp(max=80.0).expm1() / (alpha - 1)
    return log_ratio


def rank_partners(values: PerPair, others: PerPair) -> PerPair:
    """For each value, the element of `others` with the same rank. Ties keep their order. No gradient.

    Optimal transport in one dimension matches sorted values: AOT, Melnyk et al., arXiv 2406.05882.
    """
    rank = values.detach().argsort(stable=True).argsort()
    return others.detach().sort().values[rank]


def wpo_weight(logp: PerToken, log_collision: PerToken, mask: Mask) -> PerSequence:
    """exp of the mean of lp − log Σ_v p_v² over each completion: how likely it is under the policy. No gradient.

    Reference:
        WPO, Zhou et al., arXiv 2406.11827, eq. 2.
    """
    aligned = ((logp - log_collision).detach() * mask).sum(-1)
    return (aligned / lengths(mask)).exp()
