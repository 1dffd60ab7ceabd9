"""Supervised fine-tuning: the negative log-likelihood of the demonstration."""

from __future__ import annotations

from torch import Tensor

from boresight.loss.aggregate import Scalar, aggregated, token_weights
from boresight.types import Mask, PerToken


def likelihood_total(mask: Mask) -> Scalar:
    """This batch's share of the total: its number of tokens. Sum it over micro-batches and ranks before the first backward."""
    return mask.sum().float()


def likelihood_loss(logp: PerToken, mask: Mask, total: float | Tensor) -> Scalar:
    """−Σ m_t lp_t / total, in nats per token; `total` is the number of tokens of the optimizer step over all ranks."""
    return aggregated(-logp, token_weights(mask), total)
