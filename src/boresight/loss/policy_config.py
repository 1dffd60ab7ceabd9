"""The options of the policy-gradient objectives, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PolicyLossConfig:
    """Options of `boresight.loss.policy`; a mixin of the trainer's config. `check_policy_loss` refuses contradictions.

    Names and defaults are TRL 1.16's `GRPOConfig`, except: the sampler correction (`token_truncate` at 2 instead of
    `sequence_mask` at 3), and `loss_type` and `importance_sampling_level`, which unset (None) follow one another and
    together mean TRL's `dapo` and `token`. `gmpo_epsilon`, `kl_estimator` and the modes `geometric_*` are not in TRL.
    """

    loss_type: str | None = field(
        default=None,
        metadata={
            "help": "Objective: grpo, bnpo, dr_grpo, dapo, luspo, cispo, sapo, vespo, gmpo or rloo. Unset: grpo where "
            "importance_sampling_level is over the sequence, rloo for sequence_sum, else dapo."
        },
    )
    importance_sampling_level: str | None = field(
        default=None,
        metadata={
            "help": "Importance ratio: token, sequence (GSPO: length-normalised, one per completion), sequence_token (GSPO-token: "
            "its value, each token's own gradient) or sequence_sum (RLOO: not normalised). Unset: what loss_type is defined with."
        },
    )
    epsilon: float = field(
        default=0.2, metadata={"help": "The ratio is clipped from below at 1 - epsilon where A < 0."}
    )
    epsilon_high: float | None = field(
        default=None,
        metadata={
            "help": "The ratio is clipped from above at 1 + epsilon_high where A > 0; unset: epsilon. DAPO: 0.28. For "
            "loss_type=cispo the absolute cap of the weight, at least 1 (ScaleRL: 5.0)."
        },
    )
    delta: float | None = field(
        default=None,
        metadata={
            "help": "Two-sided clip: the ratio is at most delta where A < 0 (INTELLECT-2). Above 1 + epsilon_high."
        },
    )
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL to the reference. 0: no reference is loaded."})
    kl_estimator: str = field(default="k3", metadata={"help": "Estimator of the KL: k1, k2 or k3 (GRPO's)."})
    use_bias_correction_kl: bool = field(
        default=True,
        metadata={
            "help": "Multiply the KL by the token's importance ratio, which makes its gradient that of the reverse KL "
            "(DeepSeek-V3.2)."
        },
    )
    sapo_temperature_pos: float = field(default=1.0, metadata={"help": "SAPO: temperature of the gate where A > 0."})
    sapo_temperature_neg: float = field(default=1.05, metadata={"help": "SAPO: temperature of the gate where A <= 0."})
    vespo_k_pos: float = field(default=2.0, metadata={"help": "VESPO: power of the weight where A >= 0."})
    vespo_lambda_pos: float = field(default=3.0, metadata={"help": "VESPO: decay of the weight where A >= 0."})
    vespo_k_neg: float = field(default=3.0, metadata={"help": "VESPO: power of the weight where A < 0."})
    vespo_lambda_neg: float = field(default=2.0, metadata={"help": "VESPO: decay of the weight where A < 0."})
    gmpo_epsilon: float = field(default=0.4, metadata={"help": "GMPO: clip of each token's log ratio, on both sides."})
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Leave completions that hit the length limit out of the loss (DAPO)."}
    )
    top_entropy_quantile: float = field(
        default=1.0,
        metadata={
            "help": "Share of tokens, those of highest entropy in the step, that keep their policy loss; 1 keeps all (Beyond the "
            "80/20 Rule: 0.2)."
        },
    )
    entropy_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the entropy bonus: the mean entropy per token, whatever the loss_type."},
    )
    off_policy_mask_threshold: float | None = field(
        default=None,
        metadata={
            "help": "Leave out completions with A < 0 that the policy has left by more than this many nats per token "
            "(DeepSeek-V3.2, eq. 9)."
        },
    )
    vllm_importance_sampling_correction: bool = field(
        default=True,
        metadata={
            "help": "Correct for the gap between the sampler's log-probabilities and the trainer's, whatever the sampler."
        },
    )
    vllm_importance_sampling_mode: str = field(
        default="token_truncate",
        metadata={
            "help": "The correction's ratio over the token, the sequence (product) or the sequence's geometric mean, truncated to "
            "the bounds or set to zero outside: token_truncate, token_mask, sequence_truncate, sequence_mask, "
            "geometric_truncate, geometric_mask."
        },
    )
    vllm_importance_sampling_clip_max: float | None = field(
        default=2.0, metadata={"help": "Upper bound of the correction's ratio; None: no bound."}
    )
    vllm_importance_sampling_clip_min: float | None = field(
        default=None, metadata={"help": "Lower bound of the correction's ratio; None: no bound."}
    )
