"""Preference losses as rows of a table, and weighted sums of them: DPO is one row, MPO three.

Completions come in pairs, chosen then rejected: rows 0, 2, 4 … of a batch are chosen, rows 1, 3, 5 … rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from boresight.errors import ConfigError, ShapeError, nearest
from boresight.loss import preference_terms as terms
from boresight.loss.aggregate import Scalar
from boresight.loss.preference_config import PreferenceLossConfig
from boresight.loss.preference_terms import PerPair
from boresight.loss.ratio import lengths
from boresight.loss.shift import SHIFTS
from boresight.types import Mask, PerSequence, PerToken

__all__ = [
    "MPO",
    "PREFERENCES",
    "PreferenceLoss",
    "PreferenceLossConfig",
    "aot_partners",
    "check_preference_loss",
    "completion_logps",
    "pair_table",
    "preference_loss",
    "preference_total",
]

Metric = tuple[Scalar, Scalar]
PairTable = Float[Tensor, "N 4"]
Partners = Float[Tensor, "N 3"]

DIVERGENCE_TYPES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")

MPO: Mapping[str, Any] = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
"""Mixed Preference Optimization, Wang et al., arXiv 2411.10442, and its recipe's weights."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a preference loss may read; each [N], in nats."""

    chosen: PerPair
    """Log ratio of the chosen answer to the reference."""
    rejected: PerPair
    margin: PerPair
    """Chosen minus rejected, after the f-divergence."""
    mean_margin: PerPair
    """The same of the per-token means."""
    chosen_logp: PerPair
    """Sum over the chosen answer's tokens under the policy, every token in full."""
    chosen_length: PerPair
    policy_margin: PerPair
    """lp(chosen) − lp(rejected) under the policy."""
    partners: Partners
    """As `aot_partners` returns; read by coupled rows alone."""
    shift: float


@dataclass(frozen=True, slots=True)
class Preference:
    """One row of the table."""

    term: Callable[[Pairs, PreferenceLossConfig], PerPair]
    reads: frozenset[str] = frozenset()
    """Options that mean something to this row and not to every row."""
    is_coupled: bool = False
    """Whether a pair's loss depends on the other pairs of the step."""


SMOOTHED, BY_MARGIN = frozenset({"label_smoothing"}), frozenset({"f_divergence_type"})

PREFERENCES: dict[str, Preference] = {
    "sigmoid": Preference(lambda p, c: terms.sigmoid(p.margin, c.beta, c.label_smoothing), BY_MARGIN | SMOOTHED),
    "sigmoid_norm": Preference(lambda p, c: terms.sigmoid(p.mean_margin, c.beta, c.label_smoothing), BY_MARGIN | SMOOTHED),
    "hinge": Preference(lambda p, c: terms.hinge(p.margin, c.beta), BY_MARGIN),
    "ipo": Preference(lambda p, c: terms.ipo(p.mean_margin, c.beta), BY_MARGIN),
    "robust": Preference(lambda p, c: terms.robust(p.margin, c.beta, c.label_smoothing), BY_MARGIN | SMOOTHED),
    "exo_pair": Preference(lambda p, c: terms.exo_pair(p.margin, c.beta, c.label_smoothing), BY_MARGIN | SMOOTHED),
    "discopop": Preference(lambda p, c: terms.discopop(p.margin, c.beta, c.discopop_tau), BY_MARGIN | {"discopop_tau"}),
    "bco_pair": Preference(lambda p, c: terms.bco_pair(p.chosen, p.rejected, c.beta, p.shift), frozenset({"bco_shift"})),
    "nca_pair": Preference(lambda p, c: terms.nca_pair(p.chosen, p.rejected, c.beta)),
    "sppo_hard": Preference(lambda p, c: terms.sppo_hard(p.chosen, p.rejected, c.beta)),
    "apo_zero": Preference(lambda p, c: terms.apo_zero(p.chosen, p.rejected, c.beta)),
    "apo_down": Preference(lambda p, c: terms.apo_down(p.chosen, p.rejected, c.beta)),
    "sft": Preference(lambda p, c: terms.sft(p.chosen_logp, p.chosen_length), BY_MARGIN),
    "aot": Preference(
        lambda p, c: terms.aot(p.policy_margin, p.partners[:, 0], c.beta, c.label_smoothing), SMOOTHED, is_coupled=True
    ),
    "aot_unpaired": Preference(
        lambda p, c: terms.aot_unpaired(
            p.chosen, p.rejected, p.partners[:, 1], p.partners[:, 2], c.beta, c.label_smoothing
        ),
        SMOOTHED,
        is_coupled=True,
    ),
}  # fmt: skip
"""`loss_type` → preference loss."""


def weighted_rows(config: PreferenceLossConfig) -> dict[str, float]:
    """Each loss of the sum and its weight.

    Raises:
        ConfigError: an unknown or repeated loss, or not one weight per loss.
    """
    names = [config.loss_type] if isinstance(config.loss_type, str) else list(config.loss_type)
    weights = [1.0] * len(names) if config.loss_weights is None else list(config.loss_weights)
    for name in names:
        if name not in PREFERENCES:
            raise ConfigError(f"loss_type={name!r} is not one of {', '.join(PREFERENCES)}.{nearest(name, PREFERENCES)}")
    if len(weights) != len(names):
        raise ConfigError(
            f"loss_weights has {len(weights)} numbers for {len(names)} losses ({', '.join(names)}): give one each."
        )
    if len(set(names)) < len(names) or not names:
        raise ConfigError(
            f"loss_type={names!r} must name at least one loss, and each once: add the weights up instead."
        )
    return dict(zip(names, weights, strict=True))


def check_preference_loss(config: PreferenceLossConfig) -> None:
    """Refuse contradictions before anything is trained.

    Raises:
        ConfigError: an unknown name, a value out of range, or a non-default option that no chosen loss reads; the
            message
            prints the fix.
    """
    rows = {name: PREFERENCES[name] for name in weighted_rows(config)}
    for option, known in (("f_divergence_type", DIVERGENCE_TYPES), ("bco_shift", SHIFTS)):
        value = getattr(config, option)
        if value not in known:
            raise ConfigError(f"{option}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")
    _check_read(config, rows)
    _check_ranges(config, rows)


def _check_read(config: PreferenceLossConfig, rows: Mapping[str, Preference]) -> None:
    default = {option.name: option.default for option in fields(PreferenceLossConfig)}
    changed = {option for option, value in default.items() if getattr(config, option) != value}
    for option in sorted(changed & frozenset().union(*(row.reads for row in PREFERENCES.values()))):
        if not any(option in row.reads for row in rows.values()):
            readers = ", ".join(name for name, row in PREFERENCES.items() if option in row.reads)
            raise ConfigError(
                f"{option} has no effect with loss_type {', '.join(rows)}: unset it, or add one of {readers}."
            )
    if "f_alpha_divergence_coef" in changed and config.f_divergence_type != "alpha_divergence":
        raise ConfigError("f_alpha_divergence_coef has no effect: set f_divergence_type='alpha_divergence'.")
    # Under another divergence the partition function cancels only in the margin.
    others = [name for name, row in rows.items() if not row.reads >= BY_MARGIN]
    if "f_divergence_type" in changed and others:
        raise ConfigError(
            f"f_divergence_type={config.f_divergence_type!r} is defined for losses of the margin, not for "
            f"{', '.join(others)}: leave it at 'reverse_kl'."
        )
    coupled = [name for name, row in rows.items() if row.is_coupled]
    if config.use_weighting and coupled:
        raise ConfigError(
            f"use_weighting weighs pairs, and {', '.join(coupled)} takes them apart: set use_weighting=False."
        )


def _check_ranges(config: PreferenceLossConfig, rows: Mapping[str, Preference]) -> None:
    if config.beta <= 0:
        raise ConfigError(f"beta={config.beta} must be above 0: TRL's default is 0.1.")
    if not 0 <= config.label_smoothing < 0.5:
        raise ConfigError(f"label_smoothing={config.label_smoothing} must be at least 0 and below 0.5.")
    if "exo_pair" in rows and config.label_smoothing == 0:
        raise ConfigError("loss_type='exo_pair' needs label_smoothing above 0: its paper sets label_smoothing=1e-3.")
    if config.ld_alpha is not None and not 0 <= config.ld_alpha <= 1:
        raise ConfigError(f"ld_alpha={config.ld_alpha} must lie between 0 and 1.")


def completion_logps(logp: PerToken, mask: Mask, ld_alpha: float | None = None) -> PerSequence:
    """Log-probability of each completion: the sum over its tokens, [B]. This is what to precompute for the reference.

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
    """This batch's share of the total: its pairs. Sum it over micro-batches and ranks before the first backward."""
    return torch.tensor(len(mask) / 2, device=mask.device)


def pair_table(policy: PerSequence, reference: PerSequence) -> PairTable:
    """What coupled rows need of every pair of the step: its two log-probabilities under policy and reference.

    Args:
        policy: `completion_logps` of the batch, from a pass without gradient over the whole step.
        reference: the same under the reference.
    """
    return torch.stack([policy[0::2], policy[1::2], reference[0::2], reference[1::2]], dim=-1).detach()


def aot_partners(table: PairTable) -> Partners:
    """For each pair of the step, what it is matched with by rank.

    Of its policy margin, a reference margin; of its chosen log ratio, a rejected one; of its rejected one, a chosen one.

    Args:
        table: `pair_table` of every micro-batch and rank of the step, in one.
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
    """The loss of one micro-batch, divided by the step's total already, and what to log."""

    loss: Scalar
    metrics: dict[str, Metric]
    """Name → (sum, count), additive over micro-batches and ranks: divide at the end."""
    reward_sum: Float[Tensor, "2"]
    """Σ (R_c + R_r)/2 over the pairs, and their number: summed over the step and ranks, what moves `RewardShift`."""


def preference_loss(
    config: PreferenceLossConfig,
    policy_logp: PerToken,
    reference: PerSequence,
    mask: Mask,
    total: float | Tensor,
    *,
    shift: float = 0.0,
    log_collision: PerToken | None = None,
    partners: Partners | None = None,
) -> PreferenceLoss:
    """The weighted sum of losses that `config` chose, on one micro-batch of pairs.

    Args:
        policy_logp: under the weights being trained; carries the gradient.
        reference: `completion_logps` under the reference, of the same `ld_alpha`.
        mask: true where a token counts.
        total: pairs of the optimizer step over all ranks.
        shift: δ, `RewardShift.value`.
        log_collision: log Σ_v p_v² of each position under the policy; needed by `use_weighting`.
        partners: this batch's rows of `aot_partners` over the step; coupled rows match within the batch without.

    Raises:
        ShapeError: an odd number of completions, or no `log_collision` where it is needed.
        ConfigError: a coupled row on part of a step without partners.
    """
    if len(mask) % 2:
        raise ShapeError(f"{len(mask)} completions do not make pairs.")
    rows = weighted_rows(config)
    policy = completion_logps(policy_logp, mask, config.ld_alpha)
    reference = reference.detach()
    pairs = _pairs(config, policy, reference, policy_logp, mask, shift, partners)
    num_pairs = preference_total(mask)
    if partners is None and any(PREFERENCES[name].is_coupled for name in rows) and float(num_pairs) != float(total):
        raise ConfigError(
            f"{', '.join(rows)} sorts over the whole optimizer step: give its partners from a first pass over the step, or set "
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
        component = (PREFERENCES[name].term(pairs, config) * pair_weight).sum()
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
    if "bco_pair" in rows:
        metrics["loss/bco_shift"] = (shift * num_pairs, num_pairs)
    reward_sum = torch.stack([((chosen + rejected) / 2).sum(), num_pairs.to(chosen.dtype)])
    return PreferenceLoss(loss, metrics, reward_sum)


def _pairs(
    config: PreferenceLossConfig,
    policy: PerSequence,
    reference: PerSequence,
    policy_logp: PerToken,
    mask: Mask,
    shift: float,
    partners: Partners | None,
) -> Pairs:
    log_ratio, length = policy - reference, lengths(mask)
    score = terms.divergence_scores(log_ratio, config.f_divergence_type, config.f_alpha_divergence_coef)
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
