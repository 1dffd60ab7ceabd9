"""Steps whose loss or gradient is not a finite number: skipped and counted, or the end of the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from boresight.errors import NonFiniteError
from boresight.modules import local

MAX_IN_A_ROW = 3
"""Steps that may be skipped one after another; one more ends the run, since nothing is learned any more."""
MAX_NAMED = 8
"""Rows that a message names."""


BAD = ("a log-probability", "the loss", "a gradient")
"""What may not be finite, in the order of a step."""
MANY_ZEROS = 10
"""Steps in a row whose gradient is exactly 0, after which that is logged."""


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest absolute value of all tensors, as a scalar that stays on the device; NaN or infinite if one of them is, 0 of none."""
    found = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not found:
        return torch.tensor(0.0)
    norms = torch._foreach_norm(found, ord=float("inf"))  # one kernel for all, and NaN is a norm of NaN
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).max()


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of a model's parameters, those that there are; of a model with shards, this rank's part."""
    return [local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]


class NonFiniteSteps:
    """Counts the steps that are skipped.

    Args:
        policy: `nan_policy`.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.num_in_a_row = 0

    def finite(self) -> None:
        """A step was finite: the count starts again."""
        self.num_in_a_row = 0

    def skipped(self, step: int, rows: Sequence[int], what: str, kept: Path | None = None) -> str:
        """Count a step; returns the line to log.

        Args:
            step: the number of the optimizer step, from 1.
            rows: the rows of this rank's share of it.
            what: what is not finite.
            kept: the file with the step's groups, if it was kept.

        Raises:
            NonFiniteError: the policy is to stop, or too many steps in a row were skipped.
        """
        self.num_in_a_row += 1
        named = ", ".join(map(str, rows[:MAX_NAMED])) + (" and others" if len(rows) > MAX_NAMED else "")
        message = f"step {step}: {what} is NaN or infinite on rows {named}."
        if kept is not None:
            message += f" (boresight doctor --replay {shlex.quote(str(kept))} shows where.)"
        ways_out = (
            "Lower learning_rate, set max_grad_norm, look at these rows, or train in float32 (bf16=False, fp16=False)."
        )
        if self.policy == "stop":
            raise NonFiniteError(f"{message} nan_policy='stop' ends the run before the weights change. {ways_out}")
        if self.num_in_a_row >= MAX_IN_A_ROW:
            raise NonFiniteError(
                f"{message} It is not the first: {self.num_in_a_row} steps in a row, so the run ends. {ways_out}"
            )
        return f"{message} The step is skipped, and the weights stay as they are."


class ZeroGradients:
    """Counts steps in a row whose gradient is exactly 0: nothing is learned, and no number shows it."""

    def __init__(self) -> None:
        self.num_in_a_row = 0

    def seen(self, step: int, *, is_zero: bool) -> str | None:
        """Count a step; returns the line to log at every `MANY_ZEROS` in a row."""
        self.num_in_a_row = self.num_in_a_row + 1 if is_zero else 0
        if not self.num_in_a_row or self.num_in_a_row % MANY_ZEROS:
            return None
        return (
            f"step {step}: the gradient was exactly 0 in {self.num_in_a_row} steps in a row, so nothing is learned. Every group's rewards "
            "may be equal, every completion may be left out of the loss (mask_truncated_completions), or no trained weight may be in use."
        )
