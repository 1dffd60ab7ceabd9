from __future__ import annotations

import pytest
import torch

from boresight.loss.aggregate import CONSTANT, SEQUENCE_MEAN, SEQUENCE_SUM, TOKEN_MEAN, Aggregate, aggregated

PER_TOKEN = torch.tensor([[1.0, 2.0, 3.0, 9.0], [10.0, 9.0, 9.0, float("nan")]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.mark.parametrize(
    ("aggregate", "total", "expected"),
    [(SEQUENCE_MEAN, 2.0, 6.0), (TOKEN_MEAN, 4.0, 4.0), (CONSTANT, 16.0, 1.0), (SEQUENCE_SUM, 2.0, 8.0)],
)
def test_closed_form(aggregate: Aggregate, total: float, expected: float) -> None:
    assert aggregate.total_share(MASK, 8).item() == total
    assert aggregated(PER_TOKEN, aggregate.weights(MASK), total).item() == pytest.approx(expected)


def test_padding_that_is_not_a_number_does_not_reach_the_gradient() -> None:
    per_token = PER_TOKEN.clone().requires_grad_()
    aggregated(per_token, TOKEN_MEAN.weights(MASK), 4.0).backward()
    assert per_token.grad is not None
    assert per_token.grad.tolist() == [[0.25, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.0]]


def test_a_step_in_which_nothing_counts_has_loss_zero() -> None:
    nothing = torch.zeros_like(MASK)
    for aggregate in (SEQUENCE_MEAN, TOKEN_MEAN, CONSTANT, SEQUENCE_SUM):
        total = aggregate.total_share(nothing, 8)
        assert aggregated(PER_TOKEN, aggregate.weights(nothing), total).item() == 0.0
