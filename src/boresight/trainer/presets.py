"""Presets: the options that configure the trainer as a published algorithm, each value with its source in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boresight.errors import ConfigError, nearest
from boresight.trainer.options import OptimizerSteps


@dataclass(frozen=True, slots=True)
class Setting:
    """One option's value and its source."""

    value: Any
    source: str


PRESETS: Mapping[str, Mapping[str, Setting]] = {
    "grpo": {
        "loss_type": Setting("grpo", "DeepSeekMath, arXiv 2402.03300, eq. 3: mean over tokens, then over completions"),
        "beta": Setting(0.04, "DeepSeekMath, section 4.2"),
        "scale_rewards": Setting("group", "DeepSeekMath, section 4.1.2"),
    },
    "dr_grpo": {
        "loss_type": Setting("dr_grpo", "Understanding R1-Zero-like training, arXiv 2503.20783, section 3.2: no division by length"),
        "scale_rewards": Setting("none", "the same: no division by the spread"),
        "beta": Setting(0.0, "the same: no divergence"),
    },
    "dapo": {
        "loss_type": Setting("dapo", "DAPO, arXiv 2503.14476, section 3.3: mean over all tokens"),
        "epsilon": Setting(0.2, "DAPO, section 4.1"),
        "epsilon_high": Setting(0.28, "DAPO, section 4.1: clip-higher"),
        "dynamic_sampling": Setting(True, "DAPO, section 3.2, eq. 11: neither all right nor all wrong"),
        "max_sampling_rounds": Setting(10, "not in the paper; max_num_gen_batches of the scripts that its authors published"),
        "mask_truncated_completions": Setting(True, "DAPO, section 3.4: overlong filtering"),
        "beta": Setting(0.0, "DAPO, section 2.3: no divergence"),
    },
    "gspo": {
        "importance_sampling_level": Setting("sequence", "GSPO, arXiv 2507.18071, eq. 7"),
        "loss_type": Setting("grpo", "GSPO, eq. 5: mean over completions"),
        "epsilon": Setting(3e-4, "GSPO, second version, section 5.1"),
        "epsilon_high": Setting(4e-4, "GSPO, second version, section 5.1"),
        "steps_per_generation": Setting(OptimizerSteps(4), "GSPO, section 5.1: four mini-batches, each an optimizer step"),
        "beta": Setting(0.0, "left out of GSPO's equations; its authors' runs had none (verl, pull request 2775)"),
    },
    "cispo": {
        "loss_type": Setting("cispo", "MiniMax-M1, arXiv 2506.13585"),
        "epsilon_high": Setting(5.0, "The Art of Scaling RL Compute, arXiv 2510.13786"),
        "beta": Setting(0.0, "MiniMax-M1: no divergence"),
    },
    "sapo": {
        "loss_type": Setting("sapo", "SAPO, arXiv 2511.20347"),
        "sapo_temperature_pos": Setting(1.0, "SAPO: as in its experiments"),
        "sapo_temperature_neg": Setting(1.05, "SAPO: as in its experiments"),
    },
    "gmpo": {
        "loss_type": Setting("gmpo", "GMPO, arXiv 2507.20673: geometric mean of the tokens' ratios"),
        "gmpo_epsilon": Setting(0.4, "GMPO: ratios within (e^-0.4, e^0.4)"),
    },
    "rloo": {
        "loss_type": Setting("rloo", "Back to Basics, arXiv 2402.14740"),
        "importance_sampling_level": Setting("sequence_sum", "the same: a completion is one action"),
        "advantage_baseline": Setting("leave_one_out", "the same: the mean of the others"),
        "scale_rewards": Setting("none", "the same"),
    },
    "mpo": {
        "loss_type": Setting(["sigmoid", "bco_pair", "sft"], "MPO, arXiv 2411.10442: preference, quality and generation loss"),
        "loss_weights": Setting([0.8, 0.2, 1.0], "MPO: w_p, w_q and w_g of its recipe"),
    },
}  # fmt: skip
"""Name → option → value and source. All but `mpo` are for `GRPOConfig`; `mpo` is for `DPOConfig`."""


def preset(name: str) -> dict[str, Any]:
    """The options of a preset, for a configuration: `GRPOConfig(**preset("dapo"), …)`.

    The four steps per generation of GSPO are optimizer steps for every `gradient_accumulation_steps`; a literal
    `steps_per_generation=4` counts micro-batches.

    Raises:
        ConfigError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}.{nearest(name, PRESETS)} Presets: {', '.join(PRESETS)}.")
    return {option: setting.value for option, setting in PRESETS[name].items()}


def described(name: str) -> str:
    """The options that a preset sets, one line each, with the paper."""
    width = max(len(f"{option}={value.value!r}") for option, value in PRESETS[name].items())
    return "\n".join(
        f"{f'{option}={value.value!r}':<{width}}  {value.source}" for option, value in PRESETS[name].items()
    )
