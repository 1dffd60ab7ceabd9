"""Policy-gradient objectives as rows of a table: ratio × surrogate × aggregate (+ divergence, + sampler correction).

    L = Σ weight · (ρ · surrogate + β · divergence) / total  −  entropy_coef · mean entropy

A new objective is one pure function in `surrogate.py` and one row of `OBJECTIVES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boresight.errors import ConfigError, ShapeError, nearest
from boresight.loss import surrogate
from boresight.loss.aggregate import (
    CONSTANT,
    SEQUENCE_MEAN,
    SEQUENCE_SUM,
    TOKEN_MEAN,
    Aggregate,
    Scalar,
    aggregated,
    sequence_weights,
    token_weights,
)
from boresight.loss.correction import CORRECTIONS, correction_weights, on_policy_enough
from boresight.loss.divergence import DIVERGENCES, unbiased
from boresight.loss.policy_config import PolicyLossConfig as PolicyLossConfig
from boresight.loss.ratio import RATIOS, Ratio, detached, over_tokens, token_log_ratio
from boresight.types import Mask, PerSequence, PerToken

Metric = tuple[Scalar, Scalar]
PolicyTotal = Float[Tensor, "2"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a surrogate may read. Padding holds zeros; in `correction`, ones."""

    log_ratio: PerToken
    policy: PerToken
    advantage: PerSequence
    mask: Mask
    correction: PerToken | None


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of the table."""

    surrogate: Callable[[Terms, PolicyLossConfig], PerToken]
    aggregate: Aggregate
    levels: tuple[str, ...]
    """Values of `importance_sampling_level` that the row is defined for, the paper's own first."""
    reads: frozenset[str]
    """Options that mean something to this row and not to every row."""
    diagnostics: Callable[[Terms, PolicyLossConfig], dict[str, PerToken]]
    """What to log under TRL's names: per-token values, to be averaged."""
    ratio: Ratio = token_log_ratio
    per_sequence: bool = False
    """Whether the diagnostics are one value per completion, so that each completion weighs the same in their mean."""
    corrects_itself: bool = False
    """Whether the surrogate uses the sampler correction in a way of its own."""


def _no_diagnostics(terms: Terms, config: PolicyLossConfig) -> dict[str, PerToken]:
    return {}


def _clip_shares(terms: Terms, low: float, high: float) -> dict[str, PerToken]:
    ratio, advantage = detached(terms.log_ratio), terms.advantage[:, None]
    is_low, is_high = (ratio < low) & (advantage < 0), (ratio > high) & (advantage > 0)
    return {
        "clip_ratio/low_mean": is_low.float(),
        "clip_ratio/high_mean": is_high.float(),
        "clip_ratio/region_mean": (is_low | is_high).float(),
    }


def _epsilon_high(config: PolicyLossConfig) -> float:
    return config.epsilon if config.epsilon_high is None else config.epsilon_high


def _clipped(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.clipped(terms.log_ratio, terms.advantage, config.epsilon, _epsilon_high(config), config.delta)


def _clipped_shares(terms: Terms, config: PolicyLossConfig) -> dict[str, PerToken]:
    return _clip_shares(terms, 1 - config.epsilon, 1 + _epsilon_high(config))


def _cispo(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.cispo(terms.log_ratio, terms.advantage, terms.policy, _epsilon_high(config))


def _cispo_share(terms: Terms, config: PolicyLossConfig) -> dict[str, PerToken]:
    capped = (detached(terms.log_ratio) > _epsilon_high(config)) & (terms.advantage[:, None] > 0)
    return {"cispo_clip_ratio": capped.float()}


def _sapo(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.sapo(terms.log_ratio, terms.advantage, config.sapo_temperature_pos, config.sapo_temperature_neg)


def _gmpo(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.gmpo(terms.log_ratio, terms.advantage, terms.mask, config.gmpo_epsilon)


def _gmpo_shares(terms: Terms, config: PolicyLossConfig) -> dict[str, PerToken]:
    return _clip_shares(terms, math.exp(-config.gmpo_epsilon), math.exp(config.gmpo_epsilon))


def _vespo_weight(terms: Terms, config: PolicyLossConfig) -> PerSequence:
    shape = (config.vespo_k_pos, config.vespo_lambda_pos, config.vespo_k_neg, config.vespo_lambda_neg)
    return surrogate.vespo_weight(terms.log_ratio, terms.advantage, terms.correction, *shape)


def _vespo(terms: Terms, config: PolicyLossConfig) -> PerToken:
    return surrogate.vespo(_vespo_weight(terms, config), terms.advantage, terms.policy)


def _vespo_mean(terms: Terms, config: PolicyLossConfig) -> dict[str, PerToken]:
    return {"vespo/phi_seq_mean": over_tokens(_vespo_weight(terms, config), terms.mask)}


CLIP = frozenset({"epsilon", "epsilon_high", "delta"})
SAPO = frozenset({"sapo_temperature_pos", "sapo_temperature_neg"})
VESPO = frozenset({"vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"})
BY_SEQUENCE = ("sequence", "sequence_token")

OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(_clipped, SEQUENCE_MEAN, ("token", *BY_SEQUENCE, "sequence_sum"), CLIP, _clipped_shares),
    "bnpo": Objective(_clipped, TOKEN_MEAN, ("token",), CLIP, _clipped_shares),
    "dr_grpo": Objective(_clipped, CONSTANT, ("token",), CLIP, _clipped_shares),
    "dapo": Objective(_clipped, TOKEN_MEAN, ("token",), CLIP, _clipped_shares),
    "luspo": Objective(_clipped, SEQUENCE_SUM, BY_SEQUENCE, CLIP, _clipped_shares),
    "rloo": Objective(_clipped, SEQUENCE_MEAN, ("sequence_sum",), CLIP, _clipped_shares),
    "cispo": Objective(_cispo, TOKEN_MEAN, ("token",), frozenset({"epsilon_high"}), _cispo_share),
    "sapo": Objective(_sapo, SEQUENCE_MEAN, ("token", *BY_SEQUENCE), SAPO, _no_diagnostics),
    "gmpo": Objective(_gmpo, SEQUENCE_MEAN, ("token",), frozenset({"gmpo_epsilon"}), _gmpo_shares),
    "vespo": Objective(
        _vespo, TOKEN_MEAN, ("token",), VESPO, _vespo_mean, per_sequence=True, corrects_itself=True
    ),
}  # fmt: skip
"""`loss_type` → objective, its ratio still to be chosen by `importance_sampling_level`."""

UNSET_LOSS_TYPE = {None: "dapo", "token": "dapo", "sequence": "grpo", "sequence_token": "grpo", "sequence_sum": "rloo"}
"""What an unset `loss_type` means at each `importance_sampling_level`."""


def _known(option: str, value: str, known: dict[str, object] | dict[str, Ratio]) -> None:
    if value not in known:
        raise ConfigError(f"{option}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")


def resolved_names(config: PolicyLossConfig) -> tuple[str, str]:
    """`loss_type` and `importance_sampling_level` after what was left unset is filled in.

    Raises:
        ConfigError: an unknown name, or a ratio that the objective is not defined for; the message prints the fix.
    """
    level = config.importance_sampling_level
    if level is not None:
        _known("importance_sampling_level", level, dict(RATIOS))
    loss_type = UNSET_LOSS_TYPE[level] if config.loss_type is None else config.loss_type
    _known("loss_type", loss_type, dict(OBJECTIVES))
    row = OBJECTIVES[loss_type]
    level = level or row.levels[0]
    if level not in row.levels:
        reason = (
            "would weight each completion by its length"
            if row.aggregate is TOKEN_MEAN or row.aggregate is CONSTANT
            else "is not what its paper defines"
        )
        raise ConfigError(
            f"loss_type={loss_type!r} with importance_sampling_level={level!r} {reason}. Set "
            f"importance_sampling_level={row.levels[0]!r}, or leave loss_type unset, which means {UNSET_LOSS_TYPE[level]!r} here."
        )
    return loss_type, level


def policy_objective(config: PolicyLossConfig) -> Objective:
    """The row that the options choose, with its ratio.

    Raises:
        ConfigError: as `resolved_names`.
    """
    loss_type, level = resolved_names(config)
    row = OBJECTIVES[loss_type]
    return replace(row, ratio=RATIOS[level], per_sequence=row.per_sequence or level != "token")


def check_policy_loss(config: PolicyLossConfig) -> None:
    """Refuse contradictions before anything is trained.

    Raises:
        ConfigError: an unknown name, a value out of range, or a non-default option that the objective does not read; the message
            prints the fix.
    """
    loss_type, _ = resolved_names(config)
    row = OBJECTIVES[loss_type]
    _known("kl_estimator", config.kl_estimator, dict(DIVERGENCES))
    _known("vllm_importance_sampling_mode", config.vllm_importance_sampling_mode, dict(CORRECTIONS))
    default = {option.name: option.default for option in fields(PolicyLossConfig)}
    for option in sorted(frozenset().union(*(other.reads for other in OBJECTIVES.values())) - row.reads):
        if getattr(config, option) != default[option]:
            readers = ", ".join(name for name, other in OBJECTIVES.items() if option in other.reads)
            raise ConfigError(
                f"{option} has no effect with loss_type={loss_type!r}: unset it, or use one of {readers}."
            )
    if loss_type == "cispo" and _epsilon_high(config) < 1:
        raise ConfigError(
            f"With loss_type='cispo', epsilon_high is the absolute cap of the importance weight and must be at least 1, not "
            f"{_epsilon_high(config)}: set epsilon_high=5.0 (ScaleRL)."
        )
    if config.delta is not None and config.delta <= 1 + _epsilon_high(config):
        raise ConfigError(
            f"delta={config.delta} must be above 1 + epsilon_high = {1 + _epsilon_high(config)}: set delta=4.0 (INTELLECT-2)."
        )
    if not 0 < config.top_entropy_quantile <= 1:
        raise ConfigError(
            f"top_entropy_quantile={config.top_entropy_quantile} must be above 0 and at most 1 (1 keeps all tokens)."
        )
    for option in ("epsilon", "epsilon_high", "gmpo_epsilon", "beta", "entropy_coef", "off_policy_mask_threshold"):
        if (value := getattr(config, option)) is not None and value < 0:
            raise ConfigError(f"{option}={value} must not be negative.")
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    if low is not None and high is not None and low > high:
        raise ConfigError(
            f"vllm_importance_sampling_clip_min={low} is above vllm_importance_sampling_clip_max={high}: swap them."
        )
    mode = config.vllm_importance_sampling_mode
    if row.corrects_itself and config.vllm_importance_sampling_correction and not mode.startswith("token_"):
        raise ConfigError(
            f"loss_type={loss_type!r} takes the correction into the ratio of the sequence itself: set "
            f"vllm_importance_sampling_mode='token_truncate' or 'token_mask', not {mode!r}."
        )


def counted_mask(config: PolicyLossConfig, mask: Mask, is_truncated: Bool[Tensor, "B"]) -> Mask:
    """The mask without truncated completions, where `mask_truncated_completions` says so."""
    return mask & ~is_truncated[:, None] if config.mask_truncated_completions else mask


def high_entropy_threshold(entropy: Float[Tensor, "N"], share: float) -> float:
    """The entropy, in nats, at and above which lie the top `share` of the step's tokens.

    Args:
        entropy: of every counted token of the step, gathered over micro-batches and ranks.
        share: `top_entropy_quantile`.

    Reference:
        Wang et al., Beyond the 80/20 Rule, arXiv 2506.01939.
    """
    return float(np.quantile(entropy.detach().float().cpu().numpy(), 1 - share))


def _high_entropy(config: PolicyLossConfig, entropy: PerToken | None, threshold: float | None, mask: Mask) -> Mask:
    if config.top_entropy_quantile == 1:
        return mask
    if entropy is None or threshold is None:
        raise ShapeError(
            "top_entropy_quantile < 1 needs the entropy of every token and its threshold over the whole step."
        )
    return mask & (entropy >= threshold)


def policy_total(
    config: PolicyLossConfig,
    mask: Mask,
    max_completion_length: int,
    entropy: PerToken | None = None,
    entropy_threshold: float | None = None,
) -> PolicyTotal:
    """This batch's share of what the step's sums are divided by: of the objective, and of the entropy bonus.

    Add the shares of every micro-batch and rank of the optimizer step, groups that are skipped included, before the first backward, and
    hand the sum to `policy_loss`.

    Args:
        mask: true where a token counts, after `counted_mask`.
        entropy: read only where `top_entropy_quantile` is below 1, as `entropy_threshold`.
    """
    tokens = _high_entropy(config, entropy, entropy_threshold, mask).sum()
    share = policy_objective(config).aggregate.total_share(mask, max_completion_length)
    return torch.stack([share, tokens.to(share.dtype)])


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss of one micro-batch, and what to log. Add the losses and their gradients over the step: it is divided by the total already."""

    loss: Scalar
    metrics: dict[str, Metric]
    """Name → (sum, count), additive over micro-batches and ranks: divide at the end."""
    minima: dict[str, Scalar]
    """Name → least value, +∞ where nothing counted."""
    maxima: dict[str, Scalar]
    """Name → greatest value, −∞ where nothing counted."""


def _mean(value: PerToken, weights: PerToken) -> Metric:
    value = value.detach().masked_fill(weights == 0, 0.0)
    return (value * weights).sum(), weights.sum()


def _least(value: Tensor, counts: Tensor) -> Scalar:
    return value.detach().masked_fill(~counts, math.inf).amin()


def _greatest(value: Tensor, counts: Tensor) -> Scalar:
    return value.detach().masked_fill(~counts, -math.inf).amax()


def _needed(value: PerToken | None, name: str, option: str) -> PerToken:
    if value is None:
        raise ShapeError(f"{option} needs {name} of every token.")
    return value


def policy_loss(
    config: PolicyLossConfig,
    policy_logp: PerToken,
    old_logp: PerToken,
    sampler_logp: PerToken | None,
    reference_logp: PerToken | None,
    entropy: PerToken | None,
    advantage: PerSequence,
    mask: Mask,
    total: PolicyTotal,
    *,
    entropy_threshold: float | None = None,
    has_picture: Bool[Tensor, "B"] | None = None,
) -> PolicyLoss:
    """The objective chosen by `config` on one micro-batch, in nats times advantage.

    Args:
        policy_logp: under the weights being trained; carries the gradient.
        old_logp: under the trainer's weights at rollout; `policy_logp.detach()` where no update came between.
        sampler_logp: as the sampler reported; NaN where it could not. None: no correction.
        reference_logp: under the reference; needed where `beta` is not 0.
        entropy: needed where `entropy_coef` is not 0 (then with its gradient) or `top_entropy_quantile` is below 1.
        advantage: one number per completion.
        mask: true where a token counts, after `counted_mask`.
        total: the sum of `policy_total` over the step and all ranks.
        entropy_threshold: `high_entropy_threshold` over the step.
        has_picture: where given, the sampler's drift is logged apart for prompts with pictures and without.

    Raises:
        ShapeError: a tensor that an option needs was not passed.
        ConfigError: as `resolved_names`.
    """
    objective = policy_objective(config)
    policy, old = policy_logp.masked_fill(~mask, 0.0), old_logp.detach().masked_fill(~mask, 0.0)
    sampler = None if sampler_logp is None else sampler_logp.masked_fill(~mask, 0.0)
    correction = None
    if sampler is not None and config.vllm_importance_sampling_correction:
        low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
        correction = correction_weights(config.vllm_importance_sampling_mode, old, sampler, mask, low, high)

    terms = Terms(objective.ratio(policy, old, mask), policy, advantage, mask, correction)
    per_token = objective.surrogate(terms, config)
    if config.off_policy_mask_threshold is not None:
        behaviour = old if sampler is None else sampler
        per_token = (
            per_token * on_policy_enough(policy, behaviour, advantage, mask, config.off_policy_mask_threshold)[:, None]
        )
    spread = _high_entropy(config, entropy, entropy_threshold, mask)
    per_token = per_token * spread
    if correction is not None and not objective.corrects_itself:
        per_token = per_token * correction

    by_token, by_sequence = token_weights(mask), sequence_weights(mask)
    metrics: dict[str, Metric] = {}
    if config.beta != 0:
        reference = _needed(reference_logp, "reference_logp", "beta").detach().masked_fill(~mask, 0.0)
        divergence = DIVERGENCES[config.kl_estimator](policy, reference)
        metrics["kl"] = _mean(divergence, by_token)
        if config.use_bias_correction_kl:
            divergence = unbiased(divergence, token_log_ratio(policy, old, mask))
        per_token = per_token + config.beta * divergence

    weights = objective.aggregate.weights(mask)
    loss = aggregated(per_token, weights, total[0])
    if config.entropy_coef != 0:
        bonus = _needed(entropy, "entropy", "entropy_coef")
        loss = loss - config.entropy_coef * aggregated(bonus, token_weights(spread), total[1])
    if entropy is not None:
        metrics["entropy"] = _mean(entropy, by_token)

    minima: dict[str, Scalar] = {}
    maxima: dict[str, Scalar] = {}
    has_tokens = mask.any(-1)
    for name, value in objective.diagnostics(terms, config).items():
        metrics[name] = _mean(value, by_sequence if objective.per_sequence else by_token)
        if name == "clip_ratio/low_mean":
            minima["clip_ratio/low_min"] = _least((value * by_sequence).sum(-1), has_tokens)
        if name == "clip_ratio/high_mean":
            maxima["clip_ratio/high_max"] = _greatest((value * by_sequence).sum(-1), has_tokens)
    if sampler is not None:
        drift = token_log_ratio(old, sampler, mask).abs()
        reported = mask & ~sampler.isnan()
        subsets = {"": torch.ones_like(has_tokens)}
        if has_picture is not None:
            subsets |= {"/with_pictures": has_picture, "/without_pictures": ~has_picture}
        for subset, rows in subsets.items():
            chosen = reported & rows[:, None]
            metrics[f"sampling/sampling_logp_difference/mean{subset}"] = _mean(drift, token_weights(chosen))
            maxima[f"sampling/sampling_logp_difference/max{subset}"] = _greatest(drift, chosen)
        metrics["sampling/frac_unreported"] = _mean(sampler.isnan().float(), by_token)
    if correction is not None:
        metrics["sampling/importance_sampling_ratio/mean"] = _mean(correction, by_token)
        minima["sampling/importance_sampling_ratio/min"] = _least(correction, mask)
        maxima["sampling/importance_sampling_ratio/max"] = _greatest(correction, mask)
    return PolicyLoss(loss, metrics, minima, maxima)
