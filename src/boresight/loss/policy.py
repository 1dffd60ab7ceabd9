"""The policy loss of a micro-batch and its metrics.

L = Σ weight · (ρ · surrogate + β · divergence) / total  −  entropy_coef · mean entropy
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from boresight.errors import ShapeError
from boresight.loss import diagnostics, surrogate
from boresight.loss.aggregate import AGGREGATES, Aggregate, Metric, Scalar, aggregated, sequence_weights, token_weights
from boresight.loss.correction import correction_weights, on_policy_enough
from boresight.loss.divergence import DIVERGENCES, unbiased
from boresight.loss.objectives import OBJECTIVES, function_of, row_of
from boresight.loss.policy_options import PolicyLossOptions, loss_beta, resolved_names
from boresight.loss.ratio import RATIOS, Ratio, token_log_ratio
from boresight.loss.surrogate import Terms
from boresight.types import Mask, PerSequence, PerToken

PolicyTotal = Float[Tensor, "2"]
Flags = Bool[Tensor, "B"]
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probabilities of the completions' tokens, [B, T], in nats. Values in the padding are ignored."""

    policy: PerToken
    """Under the weights being trained; carries the gradient."""
    old: PerToken
    """Under the trainer's weights at rollout; `policy.detach()` if there was no update since."""
    sampler: PerToken | None = None
    """As reported by the sampler; NaN where it reported none. None: no correction."""
    reference: PerToken | None = None
    """Under the reference; required if `beta` is not 0."""


@dataclass(frozen=True, slots=True)
class Entropy:
    """Entropies of the distributions that the completions' tokens were sampled from."""

    values: PerToken
    """[B, T] in nats; with gradient if `entropy_coef` is not 0."""
    threshold: float | None = None
    """`high_entropy_threshold` over the optimizer step; required if `top_entropy_quantile` is below 1."""


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss of one micro-batch, already divided by the step's total, and its metrics."""

    loss: Scalar
    policy: Scalar
    """The loss without the entropy bonus, without gradient."""
    metrics: dict[str, Metric]
    """Name → (sum, count), additive over micro-batches and ranks: divide at the end."""
    minima: dict[str, Scalar]
    """Name → minimum, +∞ if no token counts."""
    maxima: dict[str, Scalar]
    """Name → maximum, −∞ if no token counts."""


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The functions of the chosen row."""

    ratio: Ratio
    surrogate: Callable[[Terms, PolicyLossOptions], PerToken]
    aggregate: Aggregate
    diagnostics: Callable[[Terms, PolicyLossOptions], dict[str, PerToken]]
    per_sequence: bool
    """Whether the diagnostics are one value per completion."""
    corrects_itself: bool
    """Whether the surrogate applies the sampler correction itself."""


def policy_objective(config: PolicyLossOptions) -> PolicyObjective:
    """The functions that the options choose.

    Raises:
        ConfigError: as `resolved_names`, or the row names a function that does not exist.
    """
    loss_type, level = resolved_names(config)
    row = OBJECTIVES[loss_type]
    return PolicyObjective(
        ratio=RATIOS[level],
        surrogate=function_of(row.surrogate, surrogate),
        aggregate=row_of(AGGREGATES, row.aggregate, "aggregate"),
        diagnostics=_no_diagnostics if row.diagnostics is None else function_of(row.diagnostics, diagnostics),
        per_sequence=row.per_sequence or level != "token",
        corrects_itself=row.corrects_itself,
    )


def _no_diagnostics(terms: Terms, config: PolicyLossOptions) -> dict[str, PerToken]:
    return {}


def counted_mask(config: PolicyLossOptions, mask: Mask, is_truncated: Flags) -> Mask:
    """The mask; without truncated completions if `mask_truncated_completions` is set."""
    return mask & ~is_truncated[:, None] if config.mask_truncated_completions else mask


def high_entropy_threshold(entropy: Float[Tensor, "N"], share: float) -> float:
    """The entropy, in nats, that the top `share` of the step's tokens reach or exceed.

    Args:
        entropy: of every counted token of the step, gathered over micro-batches and ranks.
        share: `top_entropy_quantile`.

    Reference:
        Wang et al., Beyond the 80/20 Rule, arXiv 2506.01939.
    """
    return float(np.quantile(entropy.detach().float().cpu().numpy(), 1 - share))


def _high_entropy(config: PolicyLossOptions, entropy: Entropy | None, mask: Mask) -> Mask:
    if config.top_entropy_quantile == 1:
        return mask
    if entropy is None or entropy.threshold is None:
        raise ShapeError(
            "top_entropy_quantile < 1 needs the entropy of every token and its threshold over the whole step."
        )
    return mask & (entropy.values >= entropy.threshold)


def policy_total(
    config: PolicyLossOptions, mask: Mask, max_completion_length: int, entropy: Entropy | None = None
) -> PolicyTotal:
    """This batch's share of the two totals of the step: that of the objective and that of the entropy bonus.

    Add the shares of all micro-batches and ranks of the optimizer step, including skipped groups, before the first
    backward, and pass the sum to `policy_loss`.

    Args:
        mask: [B, T] true where a token counts, after `counted_mask`.
        entropy: read only if `top_entropy_quantile` is below 1.
    """
    tokens = _high_entropy(config, entropy, mask).sum()
    share = policy_objective(config).aggregate.total_share(mask, max_completion_length)
    return torch.stack([share, tokens.to(share.dtype)])


def policy_loss(
    config: PolicyLossOptions,
    logp: LogProbs,
    advantage: PerSequence,
    mask: Mask,
    total: PolicyTotal,
    *,
    entropy: Entropy | None = None,
    has_image: Flags | None = None,
) -> PolicyLoss:
    """The objective chosen by `config` on one micro-batch, in nats times advantage.

    Args:
        advantage: [B] one number per completion.
        mask: [B, T] true where a token counts, after `counted_mask`.
        total: [2] the sum of `policy_total` over the step and all ranks.
        entropy: required if `entropy_coef` is not 0 or `top_entropy_quantile` is below 1; otherwise only logged.
        has_image: [B] if passed, the sampler's drift is logged separately for prompts with and without images.

    Raises:
        ShapeError: a tensor that an option needs was not passed.
        ConfigError: as `policy_objective`.
    """
    objective = policy_objective(config)
    policy, old = logp.policy.masked_fill(~mask, 0.0), logp.old.detach().masked_fill(~mask, 0.0)
    sampler = None if logp.sampler is None else logp.sampler.masked_fill(~mask, 0.0)
    correction = _correction(config, old, sampler, mask)
    log = _Log(mask)

    terms = Terms(objective.ratio(policy, old, mask), policy, advantage, mask, correction)
    per_token = objective.surrogate(terms, config)
    if config.off_policy_mask_threshold is not None:
        behaviour = old if sampler is None else torch.where(sampler.isnan(), old, sampler)
        kept = on_policy_enough(policy, behaviour, advantage, mask, config.off_policy_mask_threshold)
        per_token = per_token * kept[:, None]
    if correction is not None and not objective.corrects_itself:
        per_token = per_token * correction
    explored = _high_entropy(config, entropy, mask)
    per_token = per_token * explored
    if loss_beta(config) != 0:
        reference = _needed(logp.reference, "beta", "the reference's log-probability").detach().masked_fill(~mask, 0.0)
        divergence = DIVERGENCES[config.kl_estimator](policy, reference)
        log.mean("kl", divergence)
        if config.use_bias_correction_kl:
            divergence = unbiased(divergence, token_log_ratio(policy, old, mask))
        per_token = per_token + config.beta * divergence

    loss = aggregated(per_token, objective.aggregate.weights(mask), total[0])
    without_bonus = loss.detach()
    if config.entropy_coef != 0:
        bonus = _needed(entropy, "entropy_coef", "the entropy").values
        loss = loss - config.entropy_coef * aggregated(bonus, token_weights(explored), total[1])

    if entropy is not None:
        log.mean("entropy", entropy.values)
    log.diagnostics(objective.diagnostics(terms, config), objective.per_sequence)
    if sampler is not None:
        log.drift(old, sampler, has_image)
    if correction is not None:
        log.correction(correction)
    return PolicyLoss(loss, without_bonus, log.metrics, log.minima, log.maxima)


def _correction(config: PolicyLossOptions, old: PerToken, sampler: PerToken | None, mask: Mask) -> PerToken | None:
    if sampler is None or not config.vllm_importance_sampling_correction:
        return None
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    return correction_weights(config.vllm_importance_sampling_mode, old, sampler, mask, low, high)


def _needed(given: Given | None, option: str, what: str) -> Given:
    if given is None:
        raise ShapeError(f"{option} needs {what} of every token.")
    return given


class _Log:
    """Collects the metrics of one micro-batch as sums, counts and extremes, which combine over any cut of the step."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.metrics: dict[str, Metric] = {}
        self.minima: dict[str, Scalar] = {}
        self.maxima: dict[str, Scalar] = {}

    def mean(self, name: str, value: PerToken, weights: PerToken | None = None) -> None:
        weights = token_weights(self.mask) if weights is None else weights
        self.metrics[name] = ((value.detach().masked_fill(weights == 0, 0.0) * weights).sum(), weights.sum())

    def least(self, name: str, value: Tensor, counts: Tensor) -> None:
        self.minima[name] = value.detach().masked_fill(~counts, math.inf).amin()

    def greatest(self, name: str, value: Tensor, counts: Tensor) -> None:
        self.maxima[name] = value.detach().masked_fill(~counts, -math.inf).amax()

    def diagnostics(self, values: dict[str, PerToken], per_sequence: bool) -> None:
        by_sequence, has_tokens = sequence_weights(self.mask), self.mask.any(-1)
        for name, value in values.items():
            self.mean(name, value, by_sequence if per_sequence else None)
        for extreme, bound, record in (("low", "min", self.least), ("high", "max", self.greatest)):
            if (value := values.get(f"clip_ratio/{extreme}_mean")) is not None:
                record(f"clip_ratio/{extreme}_{bound}", (value * by_sequence).sum(-1), has_tokens)

    def drift(self, old: PerToken, sampler: PerToken, has_image: Flags | None) -> None:
        unreported = sampler.isnan()
        gap = (old - sampler).abs()
        subsets = {"": self.mask & ~unreported}
        if has_image is not None:
            subsets["/with_images"] = subsets[""] & has_image[:, None]
            subsets["/without_images"] = subsets[""] & ~has_image[:, None]
        for subset, counts in subsets.items():
            self.mean(f"sampling/sampling_logp_difference/mean{subset}", gap, token_weights(counts))
            self.greatest(f"sampling/sampling_logp_difference/max{subset}", gap, counts)
        self.mean("sampling/frac_unreported", unreported.float())

    def correction(self, weights: PerToken) -> None:
        self.mean("sampling/importance_sampling_ratio/mean", weights)
        self.least("sampling/importance_sampling_ratio/min", weights, self.mask)
        self.greatest("sampling/importance_sampling_ratio/max", weights, self.mask)
