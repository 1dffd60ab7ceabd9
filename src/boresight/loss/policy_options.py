"""The options of the policy-gradient objectives, under TRL's names, and the combinations that are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.loss.objectives import OBJECTIVES, Level, check_read, row_of
from boresight.options import Needs, OneOf, Range, Source, option

KLEstimator = Literal["k1", "k2", "k3"]
"""Values of `kl_estimator`: the keys of `divergence.DIVERGENCES`."""
CorrectionMode = Literal[
    "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_truncate", "geometric_mask"
]
"""Values of `vllm_importance_sampling_mode`: the keys of `correction.CORRECTIONS`."""

POSITIVE, NOT_NEGATIVE = Range(above=0), Range(at_least=0)
WITH_KL = Needs("beta", POSITIVE)
WITH_CORRECTION = Needs("vllm_importance_sampling_correction", True)


@dataclass
class PolicyLossOptions:
    """Options of `boresight.loss.policy`; a mixin of the trainer's configuration.

    Names and defaults are those of `GRPOConfig` in TRL 1.16, with two exceptions. The sampler correction is `token_truncate` at 2 instead
    of `sequence_mask` at 3. `loss_type` and `importance_sampling_level` are unset (None) by default: each follows the other, and both
    unset mean TRL's `dapo` and `token`. `gmpo_epsilon`, `kl_estimator` and the modes `geometric_*` are not in TRL.
    """

    heading: ClassVar[str] = "loss"

    loss_type: Annotated[str | None, OneOf(OBJECTIVES)] = option(
        None,
        "Objective. Unset: grpo if importance_sampling_level is sequence or sequence_token, rloo if it is sequence_sum, else dapo.",
    )
    importance_sampling_level: Level | None = option(
        None,
        "Level of the importance ratio: token; sequence (GSPO: length-normalised, one per completion); sequence_token (GSPO-token: the "
        "sequence's value, each token's own gradient); or sequence_sum (RLOO: not normalised). Unset: the level that loss_type is "
        "defined with.",
    )
    epsilon: Annotated[float, Range(at_least=0, at_most=1)] = option(
        0.2, "The ratio is clipped from below at 1 - epsilon where A < 0."
    )
    epsilon_high: Annotated[float | None, NOT_NEGATIVE, Source("DAPO, arXiv 2503.14476: 0.28")] = option(
        None,
        "The ratio is clipped from above at 1 + epsilon_high where A > 0; unset: epsilon. DAPO: 0.28. For loss_type=cispo it is the "
        "absolute cap of the weight, at least 1 (ScaleRL: 5.0).",
    )
    delta: Annotated[float | None, Range(above=1), Source("INTELLECT-2, arXiv 2505.07291: 4")] = option(
        None,
        "Two-sided clip: the ratio is at most delta where A < 0 (INTELLECT-2). It must be above 1 + epsilon_high.",
    )
    beta: Annotated[float, NOT_NEGATIVE] = option(0.0, "Weight of the KL to the reference. 0: no reference is loaded.")
    kl_in_reward: Annotated[
        bool, WITH_KL, Source("Back to Basics, arXiv 2402.14740, eq. 3; the default of TRL's RLOOTrainer")
    ] = option(
        False,
        "Subtract beta times a completion's log ratio to the reference (k1, summed over its tokens) from its reward, instead of adding "
        "the KL to the loss.",
    )
    kl_estimator: Annotated[KLEstimator, WITH_KL] = option("k3", "Estimator of the KL; k3 is GRPO's.")
    use_bias_correction_kl: Annotated[bool, WITH_KL, Source("DeepSeek-V3.2, arXiv 2512.02556")] = option(
        True,
        "Multiply the KL by the token's importance ratio, so that its gradient is that of the reverse KL (DeepSeek-V3.2).",
    )
    sapo_temperature_pos: Annotated[float, POSITIVE] = option(1.0, "SAPO: temperature of the gate where A > 0.")
    sapo_temperature_neg: Annotated[float, POSITIVE] = option(1.05, "SAPO: temperature of the gate where A <= 0.")
    vespo_k_pos: Annotated[float, NOT_NEGATIVE] = option(2.0, "VESPO: power of the weight where A >= 0.")
    vespo_lambda_pos: Annotated[float, NOT_NEGATIVE] = option(3.0, "VESPO: decay of the weight where A >= 0.")
    vespo_k_neg: Annotated[float, NOT_NEGATIVE] = option(3.0, "VESPO: power of the weight where A < 0.")
    vespo_lambda_neg: Annotated[float, NOT_NEGATIVE] = option(2.0, "VESPO: decay of the weight where A < 0.")
    gmpo_epsilon: Annotated[float, NOT_NEGATIVE, Source("GMPO, arXiv 2507.20673")] = option(
        0.4, "GMPO: clip of each token's log ratio, on both sides."
    )
    mask_truncated_completions: bool = option(
        False, "Exclude completions that reached the length limit from the loss (DAPO)."
    )
    top_entropy_quantile: Annotated[
        float, Range(at_least=0, at_most=1), Source("Beyond the 80/20 Rule, arXiv 2506.01939: 0.2")
    ] = option(
        1.0,
        "Share of the step's tokens, those of highest entropy, that keep their policy loss; 1 keeps all (Beyond the 80/20 Rule: 0.2).",
    )
    entropy_coef: Annotated[float, NOT_NEGATIVE] = option(
        0.0, "Weight of the entropy bonus: the mean entropy per token, for every loss_type."
    )
    off_policy_mask_threshold: Annotated[
        float | None, NOT_NEGATIVE, Source("DeepSeek-V3.2, arXiv 2512.02556, eq. 9")
    ] = option(
        None,
        "Exclude completions with A < 0 whose mean log-probability per token has dropped by more than this, in nats, since they were "
        "sampled (DeepSeek-V3.2, eq. 9).",
    )
    vllm_importance_sampling_correction: bool = option(
        True,
        "Correct for the gap between the sampler's log-probabilities and the trainer's, for every sampler.",
    )
    vllm_importance_sampling_mode: Annotated[
        CorrectionMode,
        WITH_CORRECTION,
        Source("TRL: sequence_mask, whose product over the tokens grows with the length"),
    ] = option(
        "token_truncate",
        "Ratio of the correction: of the token, the sequence (product) or the sequence's geometric mean. It is truncated to the bounds, or "
        "set to zero outside of them (mask).",
    )
    vllm_importance_sampling_clip_max: Annotated[float | None, POSITIVE, WITH_CORRECTION] = option(
        2.0, "Upper bound of the correction's ratio; None: no bound."
    )
    vllm_importance_sampling_clip_min: Annotated[float | None, NOT_NEGATIVE, WITH_CORRECTION] = option(
        None, "Lower bound of the correction's ratio; None: no bound."
    )


UNSET_LOSS_TYPE: dict[Level | None, str] = {
    None: "dapo",
    "token": "dapo",
    "sequence": "grpo",
    "sequence_token": "grpo",
    "sequence_sum": "rloo",
}
"""`importance_sampling_level` → the meaning of an unset `loss_type`."""


def loss_beta(config: PolicyLossOptions) -> float:
    """The weight of the KL in the loss; 0 if it is part of the reward."""
    return 0.0 if config.kl_in_reward else config.beta


def upper_epsilon(config: PolicyLossOptions) -> float:
    """`epsilon_high`, or `epsilon` where that is unset."""
    return config.epsilon if config.epsilon_high is None else config.epsilon_high


def resolved_names(config: PolicyLossOptions) -> tuple[str, Level]:
    """`loss_type` and `importance_sampling_level`, with unset values filled in.

    Raises:
        ConfigError: an unknown name, or a ratio that the objective is not defined for; the message prints the fix.
    """
    level = config.importance_sampling_level
    loss_type = UNSET_LOSS_TYPE[level] if config.loss_type is None else config.loss_type
    row = row_of(OBJECTIVES, loss_type, "loss_type")
    level = level or row.levels[0]
    if level not in row.levels:
        reason = (
            "would weight each completion by its length"
            if row.aggregate in ("token_mean", "constant")
            else "is not defined in its paper"
        )
        raise ConfigError(
            f"loss_type={loss_type!r} with importance_sampling_level={level!r} {reason}. Set "
            f"importance_sampling_level={row.levels[0]!r}, or leave loss_type unset, which means {UNSET_LOSS_TYPE[level]!r} here."
        )
    return loss_type, level


def check_policy_loss(config: PolicyLossOptions) -> None:
    """Refuse options that contradict one another; `check_options` has checked each one separately.

    Raises:
        ConfigError: a ratio that the objective is not defined for, an option that it does not read, or bounds that cross; the message
            prints the fix.
    """
    loss_type, _ = resolved_names(config)
    check_read(config, PolicyLossOptions, OBJECTIVES, [loss_type])
    _check_clip(config, loss_type)
    _check_correction(config, loss_type)


def _check_clip(config: PolicyLossOptions, loss_type: str) -> None:
    epsilon_high = upper_epsilon(config)
    if loss_type == "cispo" and epsilon_high < 1:
        raise ConfigError(
            "With loss_type='cispo', epsilon_high is the absolute cap of the importance weight and must be at least 1, "
            f"not {epsilon_high}: set epsilon_high=5.0 (ScaleRL)."
        )
    if config.delta is not None and config.delta <= 1 + epsilon_high:
        raise ConfigError(
            f"delta={config.delta} must be above 1 + epsilon_high = {1 + epsilon_high}: set delta=4.0 (INTELLECT-2)."
        )


def _check_correction(config: PolicyLossOptions, loss_type: str) -> None:
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    if low is not None and high is not None and low > high:
        raise ConfigError(
            f"vllm_importance_sampling_clip_min={low} is above vllm_importance_sampling_clip_max={high}: swap them."
        )
    mode = config.vllm_importance_sampling_mode
    corrected = config.vllm_importance_sampling_correction and OBJECTIVES[loss_type].corrects_itself
    if corrected and not mode.startswith("token_"):
        raise ConfigError(
            f"loss_type={loss_type!r} includes the correction in its own sequence ratio: set "
            f"vllm_importance_sampling_mode='token_truncate' or 'token_mask', not {mode!r}."
        )
