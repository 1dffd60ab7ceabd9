"""From per-token losses to one number: ``sum(weight · per_token) / total``.

`total` is the sum of the shares of all micro-batches and ranks over the whole optimizer step, computed before the first
backward pass. So the result does not depend on how the step is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from boresight.loss.ratio import lengths
from boresight.types import Mask, PerToken

Scalar = Float[Tensor, ""]
Metric = tuple[Scalar, Scalar]
"""A sum and its count, both additive over micro-batches and ranks: divide at the end."""


def token_weights(mask: Mask) -> PerToken:
    """1 on every token that counts."""
    return mask.float()


def sequence_weights(mask: Mask) -> PerToken:
    """1/|y_i| on every token that counts: each completion has the same weight."""
    return mask / lengths(mask)[:, None]


def num_tokens(mask: Mask, max_completion_length: int) -> Scalar:
    """The number of tokens that count."""
    return mask.sum().float()


def num_sequences(mask: Mask, max_completion_length: int) -> Scalar:
    """The number of completions, including those without a counted token."""
    return torch.tensor(float(len(mask)), device=mask.device)


def num_positions(mask: Mask, max_completion_length: int) -> Scalar:
    """Completions × `max_completion_length`: a constant, so long completions are not favoured (Dr. GRPO)."""
    return num_sequences(mask, max_completion_length) * max_completion_length


@dataclass(frozen=True, slots=True)
class Aggregate:
    """How tokens are weighted, and this batch's share of the total that they are divided by."""

    weights: Callable[[Mask], PerToken]
    total_share: Callable[[Mask, int], Scalar]


AGGREGATES: dict[str, Aggregate] = {
    # DAPO, arXiv 2503.14476: all tokens of the optimizer step have the same weight.
    "token_mean": Aggregate(token_weights, num_tokens),
    # GRPO, arXiv 2402.03300: the mean over tokens of each completion, then the mean over completions.
    "sequence_mean": Aggregate(sequence_weights, num_sequences),
    # LUSPO, arXiv 2602.05261: the sum over tokens of each completion, then the mean over completions.
    "sequence_sum": Aggregate(token_weights, num_sequences),
    # Dr. GRPO, arXiv 2503.20783: the sum over tokens, divided by a constant.
    "constant": Aggregate(token_weights, num_positions),
}
"""Name of an aggregate, as in the rows of `objectives.OBJECTIVES` → aggregate."""


def aggregated(per_token: PerToken, weights: PerToken, total: float | Tensor) -> Scalar:
    """``sum(weights · per_token) / total``. Values of weight zero are ignored, including NaN.

    A step in which no token counts has total 0 and loss 0.
    """
    counted = per_token.masked_fill(weights == 0, 0.0)
    return (weights * counted).sum() / max(total, 1.0)
