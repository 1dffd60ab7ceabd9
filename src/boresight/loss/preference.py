"""Weighted sums of preference losses: DPO is one loss, MPO is three.

Completions come in pairs, chosen then rejected: rows 0, 2, 4 … of a batch are chosen, rows 1, 3, 5 … are rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from boresight.errors import ConfigError, ShapeError
from boresight.loss import preference_terms as terms
from boresight.loss.aggregate import Metric, Scalar
from boresight.loss.objectives import PREFERENCES, function_of
from boresight.loss.preference_options import PreferenceLossOptions, is_coupled, reads_shift, weighted_rows
from boresight.loss.preference_terms import Pairs, Partners
from boresight.loss.ratio import lengths
from boresight.types import Mask, PerSequence, PerToken

PairTable = Float[Tensor, "N 4"]


def completion_logps(logp: PerToken, mask: Mask, ld_alpha: float | None = None) -> PerSequence:
    """Log-probability of each completion: the sum over its tokens, [B]. These are the values to precompute for the reference.

    Args:
        ld_alpha: weight of the tokens by which one completion of the pair is longer (LD-DPO, arXiv 2409.06411).
            None: 1.
    """
    weights = mask.to(logp.dtype)
    if ld_alpha is not None:
        length = mask.sum(-1)
        shared = length.view(-1, 2).amin(-1).repeat_interleave(2)
        weights = weights.where(mask.cumsum(-1) <= shared[:, None], weights * ld_alpha)
    return (logp.masked_fill(~mask, 0.0) * weights).sum(-1)


def preference_total(mask: Mask) -> Scalar:
    """This batch's share of the total: its number of pairs. Sum it over micro-batches and ranks before the first backward."""
    return torch.tensor(len(mask) / 2, device=mask.device)


def pair_table(policy: PerSequence, reference: PerSequence) -> PairTable:
    """The input of coupled losses for every pair of the step: its two log-probabilities under policy and reference.

    Args:
        policy: `completion_logps` of the batch, from a pass without gradient over the whole step.
        reference: the same under the reference.
    """
    return torch.stack([policy[0::2], policy[1::2], reference[0::2], reference[1::2]], dim=-1).detach()


def aot_partners(table: PairTable) -> Partners:
    """For each pair of the step, its partners of the same rank in sorted order.

    The policy margin is matched with a reference margin, the chosen log ratio with a rejected one, and the rejected log ratio with a
    chosen one.

    Args:
        table: `pair_table` of all micro-batches and ranks of the step, concatenated.
    """
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = table.unbind(-1)
    chosen, rejected = policy_chosen - reference_chosen, policy_rejected - reference_rejected
    return torch.stack(
        [
            terms.rank_partners(policy_chosen - policy_rejected, reference_chosen - reference_rejected),
            terms.rank_partners(chosen, rejected),
            terms.rank_partners(rejected, chosen),
        ],
        dim=-1,
    )


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss of one micro-batch, already divided by the step's total, and its metrics."""

    loss: Scalar
    metrics: dict[str, Metric]
    """Name → (sum, count), additive over micro-batches and ranks: divide at the end."""
    reward_sum: Float[Tensor, "2"]
    """Σ (R_c + R_r)/2 over the pairs, and their number. Summed over the step and ranks, it is the input of `RewardShift.update`."""


def preference_loss(
    config: PreferenceLossOptions,
    policy_logp: PerToken,
    reference: PerSequence,
    mask: Mask,
    total: float | Tensor,
    *,
    shift: float = 0.0,
    log_collision: PerToken | None = None,
    partners: Partners | None = None,
) -> PreferenceLoss:
    """The weighted sum of the chosen losses on one micro-batch of pairs.

    Args:
        policy_logp: under the weights being trained; carries the gradient.
        reference: `completion_logps` under the reference, with the same `ld_alpha`.
        mask: true where a token counts.
        total: pairs of the optimizer step over all ranks.
        shift: δ, `RewardShift.value`.
        log_collision: log Σ_v p_v² of each position under the policy; needed by `use_weighting`.
        partners: this batch's rows of `aot_partners` over the step. None: coupled losses match within the batch.

    Raises:
        ShapeError: an odd number of completions, or a required `log_collision` is missing.
        ConfigError: a coupled loss on part of a step without partners.
    """
    if len(mask) % 2:
        raise ShapeError(f"{len(mask)} completions do not make pairs.")
    rows = weighted_rows(config)
    policy = completion_logps(policy_logp, mask, config.ld_alpha)
    reference = reference.detach()
    pairs = _pairs(config, policy, reference, policy_logp, mask, shift, partners)
    num_pairs = preference_total(mask)
    if partners is None and is_coupled(config) and float(num_pairs) != float(total):
        raise ConfigError(
            f"{', '.join(rows)} sorts over the whole optimizer step: pass its partners from a first pass over the step, or set "
            "gradient_accumulation_steps=1 on one process."
        )
    weight = torch.ones_like(policy)
    if config.use_weighting:
        if log_collision is None:
            raise ShapeError("use_weighting needs log_collision of every token.")
        weight = terms.wpo_weight(policy_logp, log_collision, mask)
    pair_weight = weight[0::2] * weight[1::2]

    loss = policy.new_zeros(())
    metrics: dict[str, Metric] = {}
    for name, factor in rows.items():
        term = function_of(PREFERENCES[name].term, terms)
        component = (term(pairs, config) * pair_weight).sum()
        loss = loss + factor * component / max(total, 1.0)
        metrics[f"loss/{name}"] = (component.detach(), num_pairs)
        metrics[f"loss/{name}_weighted"] = (factor * component.detach(), num_pairs)

    chosen, rejected = config.beta * pairs.chosen.detach(), config.beta * pairs.rejected.detach()
    logged = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": policy[0::2].detach(),
        "logps/rejected": policy[1::2].detach(),
    }
    metrics |= {name: (value.sum(), num_pairs) for name, value in logged.items()}
    if reads_shift(config):
        metrics["loss/bco_shift"] = (shift * num_pairs, num_pairs)
    reward_sum = torch.stack([((chosen + rejected) / 2).sum(), num_pairs.to(chosen.dtype)])
    return PreferenceLoss(loss, metrics, reward_sum)


def _pairs(
    config: PreferenceLossOptions,
    policy: PerSequence,
    reference: PerSequence,
    policy_logp: PerToken,
    mask: Mask,
    shift: float,
    partners: Partners | None,
) -> Pairs:
    log_ratio, length = policy - reference, lengths(mask)
    score = terms.divergence_scores(log_ratio, config)
    mean_score = score / length
    return Pairs(
        chosen=log_ratio[0::2],
        rejected=log_ratio[1::2],
        margin=score[0::2] - score[1::2],
        mean_margin=mean_score[0::2] - mean_score[1::2],
        chosen_logp=completion_logps(policy_logp, mask)[0::2],
        chosen_length=length[0::2],
        policy_margin=policy[0::2] - policy[1::2],
        partners=aot_partners(pair_table(policy, reference)) if partners is None else partners,
        shift=shift,
    )
