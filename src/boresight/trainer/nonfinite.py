"""Steps whose loss or gradient is not a finite number: skipped and counted, or the end of the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from boresight.errors import NonFiniteError

MAX_IN_A_ROW = 3
"""Steps that may be skipped one after another; one more ends the run, since nothing is learned any more."""
MAX_NAMED = 8
"""Rows that a message names."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether no element of any tensor is NaN or infinite, as a scalar that stays on the device."""
    found = [tensor.detach() for tensor in tensors]
    if not found:
        return torch.tensor(True)
    norms = torch._foreach_norm(found, ord=float("inf"))  # one kernel for all, and NaN is a norm of NaN
    return torch.stack([norm.isfinite().to(norms[0].device) for norm in norms]).all()


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of a model's parameters, those that there are."""
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


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

    def skipped(self, step: int, rows: Sequence[int], what: str) -> str:
        """Count a step; returns the line to log.

        Args:
            step: the number of the optimizer step, from 1.
            rows: the rows of this rank's share of it.
            what: what is not finite.

        Raises:
            NonFiniteError: the policy is to stop, or too many steps in a row were skipped.
        """
        self.num_in_a_row += 1
        named = ", ".join(map(str, rows[:MAX_NAMED])) + (" and others" if len(rows) > MAX_NAMED else "")
        message = f"step {step}: {what} is NaN or infinite on rows {named}."
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
