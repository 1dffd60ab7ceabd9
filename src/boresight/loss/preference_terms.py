"""Preference losses of one pair, as pure functions: log ratios in, one loss per pair out.

Throughout, ``chosen`` and ``rejected`` are log ratios s = Σ_t (lp − lp_ref) in nats, ``margin`` is s_c − s_r (after the
f-divergence, where one is set), R = β s is the implicit reward, and h = β · margin.
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

PerPair = Float[Tensor, "N"]


def sigmoid(margin: PerPair, beta: float, label_smoothing: float = 0.0) -> PerPair:
    """−(1−ε) log σ(h) − ε log σ(−h). DPO, Rafailov et al., arXiv 2305.18290, eq. 7; ε: cDPO, Mitchell 2023."""
    h = beta * margin
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def robust(margin: PerPair, beta: float, label_smoothing: float) -> PerPair:
    """[−(1−ε) log σ(h) + ε log σ(−h)] / (1−2ε): unbiased where a share ε of labels is flipped. arXiv 2403.00409."""
    h = beta * margin
    return (-(1 - label_smoothing) * logsigmoid(h) + label_smoothing * logsigmoid(-h)) / (1 - 2 * label_smoothing)


def hinge(margin: PerPair, beta: float) -> PerPair:
    """max(0, 1 − h). SLiC-HF, Zhao et al., arXiv 2305.10425; RSO, arXiv 2309.06657."""
    return relu(1 - beta * margin)


def ipo(mean_margin: PerPair, beta: float) -> PerPair:
    """(s̄_c − s̄_r − 1/(2β))² with per-token means s̄. IPO, Azar et al., arXiv 2310.12036, eq. 17."""
    return (mean_margin - 1 / (2 * beta)).square()


def exo_pair(margin: PerPair, beta: float, label_smoothing: float) -> PerPair:
    """KL(σ(±h) ‖ (1−ε, ε)), with ε > 0. EXO, Ji et al., arXiv 2402.00856, eq. 16."""
    h = beta * margin
    win = h.sigmoid() * (logsigmoid(h) - math.log1p(-label_smoothing))
    lose = (-h).sigmoid() * (logsigmoid(-h) - math.log(label_smoothing))
    return win + lose


def nca_pair(chosen: PerPair, rejected: PerPair, beta: float) -> PerPair:
    """−log σ(R_c) − ½ log σ(−R_c) − ½ log σ(−R_r). NCA, Chen et al., arXiv 2402.05369."""
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * chosen) / 2 - logsigmoid(-beta * rejected) / 2


def bco_pair(chosen: PerPair, rejected: PerPair, beta: float, shift: float) -> PerPair:
    """−log σ(R_c − δ) − log σ(−(R_r − δ)), δ the mean reward. BCO, Jung et al., arXiv 2404.04656."""
    return -logsigmoid(beta * chosen - shift) - logsigmoid(-(beta * rejected - shift))


def sppo_hard(chosen: PerPair, rejected: PerPair, beta: float) -> PerPair:
    """(s_c − 1/(2β))² + (s_r + 1/(2β))²: certain preferences. SPPO, Wu et al., arXiv 2405.00675, eq. 4.7."""
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def apo_zero(chosen: PerPair, rejected: PerPair, beta: float) -> PerPair:
    """1 − σ(R_c) + σ(R_r): for chosen answers better than the policy's. APO, arXiv 2408.06266, eq. 7."""
    return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(chosen: PerPair, rejected: PerPair, beta: float) -> PerPair:
    """σ(R_c) + 1 − σ(R_c − R_r): for chosen answers worse than the policy's. APO, arXiv 2408.06266, eq. 8."""
    return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()


def discopop(margin: PerPair, beta: float, tau: float) -> PerPair:
    """Logistic and exponential loss blended by σ(h/τ). DiscoPOP, Lu et al., arXiv 2406.08414, eq. 5."""
    h = beta * margin
    blend = (h / tau).sigmoid()
    return -logsigmoid(h) * (1 - blend) + (-h).exp() * blend


def sft(chosen_logp: PerPair, chosen_length: PerPair) -> PerPair:
    """−lp(y_c)/|y_c|: the mean over its tokens of each chosen answer. MPO, Wang et al., arXiv 2411.10442."""
    return -chosen_logp / chosen_length


def divergence_scores(log_ratio: PerPair, f_divergence_type: str, alpha: float) -> PerPair:
    """f'(π/π_ref) of a log ratio, up to a constant: what stands in DPO's margin under another divergence.

    Args:
        alpha: of the α-divergence; at 1 it is the reverse KL.

    Reference:
        Wang et al., Beyond Reverse KL, arXiv 2309.16240. TRL: ``f_divergence_type``.
    """
    if f_divergence_type == "forward_kl":
        return 1 - (-log_ratio).clamp(max=80.0).exp()
    if f_divergence_type == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if f_divergence_type == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        return ((alpha - 1) * log_ratio).clamp(max=80.0).expm1() / (alpha - 1)
    return log_ratio


def rank_partners(values: PerPair, others: PerPair) -> PerPair:
    """For each value, the element of `others` with the same rank. Ties keep their order. No gradient.

    Optimal transport on a line matches sorted with sorted: AOT, Melnyk et al., arXiv 2406.05882.
    """
    rank = values.detach().argsort(stable=True).argsort()
    return others.detach().sort().values[rank]


def aot(log_ratio: PerPair, reference_partner: PerPair, beta: float, label_smoothing: float) -> PerPair:
    """Logistic loss of lp_c − lp_r against the reference's of the same rank in the step. AOT, arXiv 2406.05882."""
    return sigmoid(log_ratio - reference_partner, beta, label_smoothing)


def aot_unpaired(
    chosen: PerPair,
    rejected: PerPair,
    rejected_partner: PerPair,
    chosen_partner: PerPair,
    beta: float,
    label_smoothing: float,
) -> PerPair:
    """Logistic loss of each chosen answer against the rejected one of the same rank in the step. AOT, arXiv 2406.05882.

    A partner carries no gradient; that of the rejected answers is added by a second term of value zero.
    """
    loss = sigmoid(chosen - rejected_partner, beta, label_smoothing)
    mirrored = sigmoid(chosen_partner - rejected, beta, label_smoothing)
    return loss + mirrored - mirrored.detach()


def wpo_weight(
    logp: Float[Tensor, "B T"], log_collision: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B"]:
    """exp of the mean of lp − log Σ_v p_v² over each completion: how much it is the policy's own. No gradient.

    Reference:
        WPO, Zhou et al., arXiv 2406.11827, eq. 2.
    """
    aligned = ((logp - log_collision).detach() * mask).sum(-1)
    return (aligned / mask.sum(-1).clamp(min=1)).exp()
