"""The table of policy-gradient objectives: surrogate × aggregate, with the ratios that each is defined for.

A new objective is one pure function in `surrogate.py` and one row of `OBJECTIVES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace

from boresight.errors import ConfigError, nearest
from boresight.loss import surrogate
from boresight.loss.aggregate import CONSTANT, SEQUENCE_MEAN, SEQUENCE_SUM, TOKEN_MEAN, Aggregate
from boresight.loss.correction import CORRECTIONS
from boresight.loss.divergence import DIVERGENCES
from boresight.loss.policy_config import PolicyLossConfig
from boresight.loss.ratio import RATIOS, Ratio, detached, over_tokens, token_log_ratio
from boresight.types import Mask, PerSequence, PerToken


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


def _require_known(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"{option}={value!r} is not one of {', '.join(known)}.{nearest(value, known)}")


def resolved_names(config: PolicyLossConfig) -> tuple[str, str]:
    """`loss_type` and `importance_sampling_level` after what was left unset is filled in.

    Raises:
        ConfigError: an unknown name, or a ratio that the objective is not defined for; the message prints the fix.
    """
    level = config.importance_sampling_level
    if level is not None:
        _require_known("importance_sampling_level", level, RATIOS)
    loss_type = UNSET_LOSS_TYPE[level] if config.loss_type is None else config.loss_type
    _require_known("loss_type", loss_type, OBJECTIVES)
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
        ConfigError: an unknown name, a value out of range, or a non-default option that the objective does not read;
            the message prints the fix.
    """
    loss_type, _ = resolved_names(config)
    _require_known("kl_estimator", config.kl_estimator, DIVERGENCES)
    _require_known("vllm_importance_sampling_mode", config.vllm_importance_sampling_mode, CORRECTIONS)
    _check_read(config, loss_type)
    _check_clip(config, loss_type)
    _check_correction(config, loss_type)
    if not 0 <= config.top_entropy_quantile <= 1:
        raise ConfigError(f"top_entropy_quantile={config.top_entropy_quantile} must lie between 0 and 1 (all tokens).")
    for option in ("beta", "entropy_coef", "off_policy_mask_threshold"):
        if (getattr(config, option) or 0) < 0:
            raise ConfigError(f"{option}={getattr(config, option)} must not be negative.")


def _check_read(config: PolicyLossConfig, loss_type: str) -> None:
    default = {option.name: option.default for option in fields(PolicyLossConfig)}
    of_some_row = frozenset().union(*(row.reads for row in OBJECTIVES.values()))
    for option in sorted(of_some_row - OBJECTIVES[loss_type].reads):
        if getattr(config, option) != default[option]:
            readers = ", ".join(name for name, row in OBJECTIVES.items() if option in row.reads)
            raise ConfigError(
                f"{option} has no effect with loss_type={loss_type!r}: unset it, or use one of {readers}."
            )


def _check_clip(config: PolicyLossConfig, loss_type: str) -> None:
    epsilon_high = _epsilon_high(config)
    if loss_type == "cispo" and epsilon_high < 1:
        raise ConfigError(
            "With loss_type='cispo', epsilon_high is the absolute cap of the importance weight and must be at least 1, "
            f"not {epsilon_high}: set epsilon_high=5.0 (ScaleRL)."
        )
    for option in ("epsilon", "epsilon_high", "gmpo_epsilon"):
        if (getattr(config, option) or 0) < 0:
            raise ConfigError(f"{option}={getattr(config, option)} must not be negative.")
    if config.delta is not None and config.delta <= 1 + epsilon_high:
        raise ConfigError(
            f"delta={config.delta} must be above 1 + epsilon_high = {1 + epsilon_high}: set delta=4.0 (INTELLECT-2)."
        )


def _check_correction(config: PolicyLossConfig, loss_type: str) -> None:
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    if low is not None and high is not None and low > high:
        raise ConfigError(
            f"vllm_importance_sampling_clip_min={low} is above vllm_importance_sampling_clip_max={high}: swap them."
        )
    mode = config.vllm_importance_sampling_mode
    corrected = config.vllm_importance_sampling_correction and OBJECTIVES[loss_type].corrects_itself
    if corrected and not mode.startswith("token_"):
        raise ConfigError(
            f"loss_type={loss_type!r} takes the correction into the ratio of the sequence itself: set "
            f"vllm_importance_sampling_mode='token_truncate' or 'token_mask', not {mode!r}."
        )
