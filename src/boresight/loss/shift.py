"""δ, the running mean of implicit rewards, which `bco_pair` subtracts."""

from __future__ import annotations

from typing import Any

from boresight.errors import ConfigError
from boresight.loss.preference_options import ShiftMode

EMA_DECAY = 0.99


class RewardShift:
    """δ for the pairs of one optimizer step, computed from the earlier steps.

    At the first step it is exactly 0, because there R = β (lp − lp_ref) = 0. Update it once per training step with sums
    over the whole step and all ranks, and never in evaluation. So it does not depend on how a step is cut, and needs no
    second forward pass. The reference code of MPO also includes the current micro-batch, so its δ is one step ahead.

    Args:
        mode: `running` is the mean over all steps so far (BCO and MPO), `ema` decays by 0.99 per step, `none` stays 0
            (TRL ≥ 0.29).

    Reference:
        BCO, arXiv 2404.04656; MPO, arXiv 2411.10442.
    """

    def __init__(self, mode: ShiftMode = "running") -> None:
        self.mode = mode
        self.value = 0.0
        self.num_pairs = 0.0

    def update(self, reward_sum: float, num_pairs: float) -> None:
        """Add one optimizer step.

        Args:
            reward_sum: Σ over the step's pairs and all ranks of (R_c + R_r)/2.
            num_pairs: pairs of the step over all ranks.
        """
        if num_pairs == 0 or self.mode == "none":
            return
        mean = reward_sum / num_pairs
        self.num_pairs += num_pairs
        share = num_pairs / self.num_pairs if self.mode == "running" else 1 - EMA_DECAY
        self.value += (mean - self.value) * share

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint needs for an exact continuation."""
        return {"mode": self.mode, "value": self.value, "num_pairs": self.num_pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ConfigError: the checkpoint was trained under another `bco_shift`.
        """
        if state["mode"] != self.mode:
            raise ConfigError(
                f"The checkpoint was trained with bco_shift={state['mode']!r}, and this run sets {self.mode!r}: set "
                f"bco_shift={state['mode']!r}, or start from the weights alone."
            )
        self.value, self.num_pairs = float(state["value"]), float(state["num_pairs"])
