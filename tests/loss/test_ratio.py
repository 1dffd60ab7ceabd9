from __future__ import annotations

import math

import pytest
import torch

from boresight.loss.ratio import RATIOS

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 7.0, 7.0]])
POLICY = torch.tensor([[-0.4, -2.3, -0.2], [-3.5, -9.0, float("nan")]])


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [[0.6, -0.3, 0.3], [-0.5, 0.0, 0.0]]),
        ("sequence", [[0.2, 0.2, 0.2], [-0.5, 0.0, 0.0]]),
        ("sequence_sum", [[0.6, 0.6, 0.6], [-0.5, 0.0, 0.0]]),
        ("sequence_token", [[0.2, 0.2, 0.2], [-0.5, 0.0, 0.0]]),
    ],
)
def test_closed_form(level: str, expected: list[list[float]]) -> None:
    policy = POLICY.masked_fill(~MASK, 3.0)
    torch.testing.assert_close(RATIOS[level](policy, OLD, MASK), torch.tensor(expected))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [1.0, 0.0, 0.0]),
        ("sequence", [1 / 3, 1 / 3, 1 / 3]),
        ("sequence_sum", [1.0, 1.0, 1.0]),
        ("sequence_token", [1.0, 0.0, 0.0]),
    ],
)
def test_gradient_of_the_first_tokens_ratio(level: str, expected: list[float]) -> None:
    policy = POLICY.masked_fill(~MASK, 3.0).requires_grad_()
    RATIOS[level](policy, OLD, MASK)[0, 0].backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad[0], torch.tensor(expected))


def test_a_completion_without_tokens_has_ratio_one() -> None:
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    for ratio in RATIOS.values():
        assert ratio(POLICY[:1], OLD[:1], nothing).exp().tolist() == [[1.0, 1.0, 1.0]]


def test_gspo_normalises_by_length_and_rloo_does_not() -> None:
    drift = torch.full((1, 100), math.log(1.1))
    full = torch.ones(1, 100, dtype=torch.bool)
    assert RATIOS["sequence"](drift, torch.zeros(1, 100), full).exp()[0, 0] == pytest.approx(1.1)
    assert RATIOS["sequence_sum"](drift, torch.zeros(1, 100), full).exp()[0, 0] == pytest.approx(13780.6, rel=1e-4)
