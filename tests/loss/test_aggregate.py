from __future__ import annotations

import pytest
import torch

from boresight.loss.aggregate import AGGREGATES, aggregated

PER_TOKEN = torch.tensor([[1.0, 2.0, 3.0, 9.0], [10.0, 9.0, 9.0, float("nan")]])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


@pytest.mark.parametrize(
    ("name", "total", "expected"),
    [("sequence_mean", 2.0, 6.0), ("token_mean", 4.0, 4.0), ("constant", 16.0, 1.0), ("sequence_sum", 2.0, 8.0)],
)
def test_closed_form(name: str, total: float, expected: float) -> None:
    aggregate = AGGREGATES[name]
    assert aggregate.total_share(MASK, 8).item() == total
    assert aggregated(PER_TOKEN, aggregate.weights(MASK), total).item() == pytest.approx(expected)


def test_padding_that_is_not_a_number_does_not_reach_the_gradient() -> None:
    per_token = PER_TOKEN.clone().requires_grad_()
    aggregated(per_token, AGGREGATES["token_mean"].weights(MASK), 4.0).backward()
    assert per_token.grad is not None
    assert per_token.grad.tolist() == [[0.25, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.0]]


def test_a_step_in_which_nothing_counts_has_loss_zero() -> None:
    nothing = torch.zeros_like(MASK)
    for aggregate in AGGREGATES.values():
        total = aggregate.total_share(nothing, 8)
        assert aggregated(PER_TOKEN, aggregate.weights(nothing), total).item() == 0.0
