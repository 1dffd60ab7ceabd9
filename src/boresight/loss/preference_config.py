"""The options of the preference losses, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PreferenceLossConfig:
    """Options of `boresight.loss.preference`; a mixin of the trainer's config. See `check_preference_loss`.

    Names and defaults are TRL 1.16's `DPOConfig`; `bco_shift` is not in TRL.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": "One or several of sigmoid (DPO), hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, "
            "apo_zero, apo_down, discopop, sft, sigmoid_norm. MPO: sigmoid bco_pair sft."
        },
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each loss; unset: 1 each. MPO: 0.8 0.2 1.0."}
    )
    beta: float = field(
        default=0.1,
        metadata={"help": "Strength of the tie to the reference; the implicit reward is beta times the log ratio."},
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={
            "help": "Share of preferences taken to be flipped, below 0.5: for sigmoid (cDPO), robust, exo_pair (above 0; paper: "
            "1e-3), aot and aot_unpaired."
        },
    )
    f_divergence_type: str = field(
        default="reverse_kl",
        metadata={
            "help": "Divergence that ties the policy to the reference: reverse_kl, forward_kl, js_divergence or alpha_divergence; "
            "for losses of the margin."
        },
    )
    f_alpha_divergence_coef: float = field(
        default=0.5, metadata={"help": "Alpha of f_divergence_type=alpha_divergence."}
    )
    ld_alpha: float | None = field(
        default=None,
        metadata={
            "help": "Weight, from 0 to 1, of the tokens by which one answer of a pair is longer than the other (LD-DPO); unset: 1."
        },
    )
    use_weighting: bool = field(
        default=False, metadata={"help": "Weigh each pair by how much it is the policy's own (WPO)."}
    )
    discopop_tau: float = field(default=0.05, metadata={"help": "Temperature of the blend in loss_type=discopop."})
    bco_shift: str = field(
        default="running",
        metadata={
            "help": "Reward shift of bco_pair: running (mean over training, BCO's and MPO's papers), ema (decay 0.99) or none (TRL)."
        },
    )
