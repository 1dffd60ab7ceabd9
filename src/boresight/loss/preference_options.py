"""The options of the preference losses, under TRL's names, and the combinations that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.errors import ConfigError
from boresight.loss.objectives import BY_MARGIN, PREFERENCES, check_read, row_of
from boresight.options import Needs, OneOf, Range, Source, option

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
ShiftMode = Literal["running", "ema", "none"]

MPO: Mapping[str, Any] = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
"""Mixed Preference Optimization, Wang et al., arXiv 2411.10442, with the weights of its recipe."""


@dataclass
class PreferenceLossOptions:
    """Options of `boresight.loss.preference`; a mixin of the trainer's configuration.

    Names and defaults are those of `DPOConfig` in TRL 1.16; `bco_shift` is not in TRL.
    """

    heading: ClassVar[str] = "loss"

    loss_type: Annotated[list[str], OneOf(PREFERENCES)] = option(
        factory=lambda: ["sigmoid"], help="One or several losses. DPO: sigmoid. MPO: sigmoid bco_pair sft."
    )
    loss_weights: Annotated[list[float] | None, Range(at_least=0)] = option(
        None, "Weight of each loss; unset: 1 each. MPO: 0.8 0.2 1.0."
    )
    beta: Annotated[float, Range(above=0)] = option(
        0.1, "Strength of the regularisation towards the reference; the implicit reward is beta times the log ratio."
    )
    label_smoothing: Annotated[float, Range(at_least=0, below=0.5)] = option(
        0.0,
        "Assumed share of flipped preferences, for sigmoid (cDPO), robust, exo_pair (above 0; paper: 1e-3), aot and aot_unpaired.",
    )
    f_divergence_type: FDivergence = option(
        "reverse_kl", "Divergence between policy and reference, for losses of the margin."
    )
    f_alpha_divergence_coef: Annotated[float, Needs("f_divergence_type", "alpha_divergence")] = option(
        0.5, "Alpha of f_divergence_type=alpha_divergence."
    )
    ld_alpha: Annotated[float | None, Range(at_least=0, at_most=1), Source("LD-DPO, arXiv 2409.06411")] = option(
        None, "Weight of the tokens by which one answer of a pair is longer than the other (LD-DPO); unset: 1."
    )
    use_weighting: Annotated[bool, Source("WPO, arXiv 2406.11827")] = option(
        False, "Weight each pair by the probability of its answers under the policy (WPO)."
    )
    discopop_tau: Annotated[float, Range(above=0)] = option(
        0.05, "Temperature of the mixing weight in loss_type=discopop."
    )
    bco_shift: Annotated[ShiftMode, Source("BCO, arXiv 2404.04656, and MPO, arXiv 2411.10442: running; TRL: none")] = (
        option(
            "running",
            "Reward shift of bco_pair: running, the mean over training (papers of BCO and MPO); ema (decay 0.99); or none (TRL).",
        )
    )


def weighted_rows(config: PreferenceLossOptions) -> dict[str, float]:
    """Each loss of the sum and its weight.

    Raises:
        ConfigError: a loss is unknown or repeated, or the number of weights is not the number of losses.
    """
    names = [config.loss_type] if isinstance(config.loss_type, str) else list(config.loss_type)
    weights = [1.0] * len(names) if config.loss_weights is None else list(config.loss_weights)
    if not any(weights):
        raise ConfigError(f"loss_weights={weights!r}: the loss would be 0. Set one of them above 0.")
    for name in names:
        row_of(PREFERENCES, name, "loss_type")
    if len(weights) != len(names):
        raise ConfigError(
            f"loss_weights has {len(weights)} numbers for {len(names)} losses ({', '.join(names)}): give one each."
        )
    if len(set(names)) < len(names) or not names:
        raise ConfigError(
            f"loss_type={names!r} must name at least one loss, and each once: add the weights up instead."
        )
    return dict(zip(names, weights, strict=True))


def is_coupled(config: PreferenceLossOptions) -> bool:
    """Whether a loss of the sum compares a pair with the other pairs of the optimizer step."""
    return any(PREFERENCES[name].is_coupled for name in weighted_rows(config))


def reads_shift(config: PreferenceLossOptions) -> bool:
    """Whether a loss of the sum is centred on the running mean of rewards, `RewardShift`."""
    return any("bco_shift" in PREFERENCES[name].reads for name in weighted_rows(config))


def check_preference_loss(config: PreferenceLossOptions) -> None:
    """Refuse options that contradict one another; `check_options` has checked each one separately.

    Raises:
        ConfigError: the number of weights is not the number of losses, no chosen loss reads an option, or a combination is not defined;
            the message prints the fix.
    """
    rows = {name: PREFERENCES[name] for name in weighted_rows(config)}
    check_read(config, PreferenceLossOptions, PREFERENCES, list(rows))
    # Under another divergence the partition function cancels only in the margin.
    others = [name for name, row in rows.items() if not row.reads >= BY_MARGIN]
    if config.f_divergence_type != "reverse_kl" and others:
        raise ConfigError(
            f"f_divergence_type={config.f_divergence_type!r} is defined for losses of the margin, not for "
            f"{', '.join(others)}: leave it at 'reverse_kl'."
        )
    coupled = [name for name, row in rows.items() if row.is_coupled]
    if config.use_weighting and coupled:
        raise ConfigError(
            f"use_weighting weights whole pairs, and {', '.join(coupled)} matches across pairs: set use_weighting=False."
        )
    if "exo_pair" in rows and config.label_smoothing == 0:
        raise ConfigError("loss_type='exo_pair' needs label_smoothing above 0: its paper sets label_smoothing=1e-3.")
