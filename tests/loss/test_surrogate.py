from __future__ import annotations

import math

import pytest
import torch

from boresight.loss import surrogate
from boresight.loss.policy_options import PolicyLossOptions
from boresight.loss.surrogate import Terms


def terms(log_ratio: list[float], advantage: float, **given: torch.Tensor) -> Terms:
    """One completion, whose tokens all count unless a mask is given."""
    ratio = torch.tensor([log_ratio])
    given = {"policy": torch.zeros_like(ratio), "mask": torch.ones_like(ratio, dtype=torch.bool)} | given
    return Terms(log_ratio=ratio, advantage=torch.tensor([advantage]), **given)


@pytest.mark.parametrize(
    ("ratio", "advantage", "delta", "expected"),
    [
        (1.1, 2.0, None, -2.2),
        (1.5, 2.0, None, -2.6),  # clipped at 1.3
        (0.5, 2.0, None, -1.0),
        (0.5, -1.0, None, 0.8),  # clipped at 0.8
        (1.5, -1.0, None, 1.5),
        (5.0, -3.0, None, 15.0),
        (5.0, -3.0, 2.0, 6.0),
        (5.0, 3.0, 2.0, -3.9),
        (0.5, -1.0, 2.0, 0.8),
    ],
)
def test_clipped(ratio: float, advantage: float, delta: float | None, expected: float) -> None:
    config = PolicyLossOptions(epsilon=0.2, epsilon_high=0.3, delta=delta)
    loss = surrogate.clipped(terms([math.log(ratio)], advantage), config)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "logp", "expected", "slope"),
    [(3.0, 2.0, -2.0, 6.0, -3.0), (0.5, -1.0, -2.0, -1.0, 0.5), (1.4, 2.0, -0.5, 1.4, -2.8)],
)
def test_cispo_caps_the_weight_and_keeps_the_gradient(
    ratio: float, advantage: float, logp: float, expected: float, slope: float
) -> None:
    policy = torch.tensor([[logp]], requires_grad=True)
    config = PolicyLossOptions(epsilon_high=1.5)
    loss = surrogate.cispo(terms([math.log(ratio)], advantage, policy=policy), config)
    loss.sum().backward()
    assert policy.grad is not None
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert policy.grad.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 3.0, -6.0), (1 + math.log(3), 3.0, -9.0), (1 + math.log(3) / 2, -1.0, 1.5), (1.0, 0.0, 0.0)],
)
def test_sapo(ratio: float, advantage: float, expected: float) -> None:
    config = PolicyLossOptions(sapo_temperature_pos=1.0, sapo_temperature_neg=2.0)
    loss = surrogate.sapo(terms([math.log(ratio)], advantage), config)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "expected"),
    [
        ([0.6, -0.2], 2.0, -2.2103418),  # (0.4 − 0.2)/2 = 0.1
        ([0.6, -0.6], -1.0, 1.1051709),  # (0.6 − 0.4)/2 = 0.1
        ([-0.9, 0.1], 2.0, -1.3406401),  # (−0.9 + 0.1)/2 = −0.4: not clipped on this side
    ],
)
def test_gmpo_is_one_value_per_completion(log_ratio: list[float], advantage: float, expected: float) -> None:
    mask = torch.tensor([[True, True, False]])
    loss = surrogate.gmpo(terms([*log_ratio, 0.0], advantage, mask=mask), PolicyLossOptions(gmpo_epsilon=0.4))
    torch.testing.assert_close(loss, torch.tensor([[expected, expected, 0.0]]))


VESPO = PolicyLossOptions(vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "expected"),
    [
        ([0.3, 0.2], 1.0, 0.3882278),  # e^{2·0.5 + 3(1 − e^{0.5})}
        ([-0.9, 0.2], -1.0, 0.3351522),  # e^{3·(−0.7) + 2(1 − e^{−0.7})}
        ([0.0, 0.0], -1.0, 1.0),
        ([9.0, 9.0], 1.0, 0.0),
    ],
)
def test_vespo_weight(log_ratio: list[float], advantage: float, expected: float) -> None:
    weight = surrogate.vespo_weight(terms(log_ratio, advantage), VESPO)
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_vespo_takes_the_correction_into_the_ratio() -> None:
    corrected = surrogate.vespo_weight(terms([0.0, 0.0], 1.0, correction=torch.tensor([[2.0, 1.5]])), VESPO)
    moved = surrogate.vespo_weight(terms([math.log(2.0), math.log(1.5)], 1.0), VESPO)
    torch.testing.assert_close(corrected, moved)


def test_vespo_gradient_is_the_weight_times_reinforce() -> None:
    policy = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    # The weight is 0.3351522, as above; the advantage −3.
    surrogate.vespo(terms([-0.9, 0.2], -3.0, policy=policy), VESPO).sum().backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, torch.full((1, 2), 3 * 0.3351522))
