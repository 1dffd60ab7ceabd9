from __future__ import annotations

import math

import pytest
import torch

from boresight.loss import surrogate

ONE = torch.ones(1, 1, dtype=torch.bool)


def log(ratio: float) -> torch.Tensor:
    return torch.tensor([[math.log(ratio)]])


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
    loss = surrogate.clipped(log(ratio), torch.tensor([advantage]), 0.2, 0.3, delta)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "logp", "expected", "slope"),
    [(3.0, 2.0, -2.0, 6.0, -3.0), (0.5, -1.0, -2.0, -1.0, 0.5), (1.4, 2.0, -0.5, 1.4, -2.8)],
)
def test_cispo_caps_the_weight_and_keeps_the_gradient(
    ratio: float, advantage: float, logp: float, expected: float, slope: float
) -> None:
    policy = torch.tensor([[logp]], requires_grad=True)
    old = policy.detach() - math.log(ratio)
    loss = surrogate.cispo(policy - old, torch.tensor([advantage]), policy, 1.5)
    loss.sum().backward()
    assert policy.grad is not None
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert policy.grad.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 3.0, -6.0), (1 + math.log(3), 3.0, -9.0), (1 + math.log(3) / 2, -1.0, 1.5), (1.0, 0.0, 0.0)],
)
def test_sapo(ratio: float, advantage: float, expected: float) -> None:
    loss = surrogate.sapo(log(ratio), torch.tensor([advantage]), 1.0, 2.0)
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
    loss = surrogate.gmpo(torch.tensor([[*log_ratio, 0.0]]), torch.tensor([advantage]), mask, 0.4)
    torch.testing.assert_close(loss, torch.tensor([[expected, expected, 0.0]]))


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
    weight = surrogate.vespo_weight(torch.tensor([log_ratio]), torch.tensor([advantage]), None, 2.0, 3.0, 3.0, 2.0)
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_vespo_takes_the_correction_into_the_ratio() -> None:
    advantage, shape = torch.tensor([1.0]), (2.0, 3.0, 3.0, 2.0)
    corrected = surrogate.vespo_weight(torch.zeros(1, 2), advantage, torch.tensor([[2.0, 1.5]]), *shape)
    moved = surrogate.vespo_weight(torch.tensor([[math.log(2.0), math.log(1.5)]]), advantage, None, *shape)
    torch.testing.assert_close(corrected, moved)


def test_vespo_gradient_is_the_weight_times_reinforce() -> None:
    policy = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    surrogate.vespo(torch.tensor([0.5]), torch.tensor([-3.0]), policy).sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == [[1.5, 1.5]]
