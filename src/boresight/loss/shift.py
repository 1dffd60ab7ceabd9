"""δ, the running mean of implicit rewards that `bco_pair` is centred on."""

from __future__ import annotations

from typing import Any

from boresight.errors import ConfigError
from boresight.loss.preference_options import ShiftMode

EMA_DECAY = 0.99


class RewardShift:
    """δ for the pairs of one optimizer step, from the steps before it.

    It is 0 at the first step, exactly, because there R = β (lp − lp_ref) = 0. Update it once per training step with
    sums over the whole step and all ranks; never in evaluation. So how a step is cut changes nothing, and no second
    forward is needed; the reference code of MPO includes the current micro-batch, one step sooner.

    Args:
        mode: `running` is the mean over all steps so far (BCO and MPO), `ema` decays by 0.99 a step, `none` stays 0
        (TRL ≥ 0.29).

    Reference:
        BCO, arXiv 2404.04656; MPO, arXiv 2411.10442.
    """

    def __init__(self, mode: ShiftMode = "running") -> None:
        self.mode = mode
        self.value = 0.0
        self.num_pairs = 0.0

    def update(self, reward_sum: float, num_pairs: float) -> None:
        """Take in one optimizer step.

        Args:
            reward_sum: Σ over the step's pairs and all ranks of (R_c + R_r)/2.
            num_pairs: of the step over all ranks.
        """
        if num_pairs == 0 or self.mode == "none":
            return
        mean = reward_sum / num_pairs
        self.num_pairs += num_pairs
        share = num_pairs / self.num_pairs if self.mode == "running" else 1 - EMA_DECAY
        self.value += (mean - self.value) * share

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to continue exactly."""
        return {"mode": self.mode, "value": self.value, "num_pairs": self.num_pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: the checkpoint was trained under another `bco_shift`.
        """
        if state["mode"] != self.mode:
            raise ConfigError(
                f"The checkpoint was trained with bco_shift={state['mode']!r}, this run asks for {self.mode!r}: set "
                f"bco_shift={state['mode']!r}, or start from the weights alone."
            )
        self.value, self.num_pairs = float(state["value"]), float(state["num_pairs"])
