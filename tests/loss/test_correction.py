from __future__ import annotations

import math

import pytest
import torch

from boresight.loss.correction import correction_weights, on_policy_enough

MASK = torch.tensor([[True, True, True, False]])
OLD = torch.tensor([[math.log(3.0), math.log(0.5), math.log(1.25), 5.0]])
SAMPLER = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, 2.0, [2.0, 0.5, 1.25, 1.0]),
        ("token_truncate", 0.9, 2.0, [2.0, 0.9, 1.25, 1.0]),
        ("token_truncate", None, None, [3.0, 0.5, 1.25, 1.0]),
        ("token_mask", 0.8, 2.0, [0.0, 0.0, 1.25, 1.0]),
        ("token_mask", None, 2.0, [0.0, 0.5, 1.25, 1.0]),
        ("sequence_truncate", None, 1.5, [1.5, 1.5, 1.5, 1.0]),
        ("sequence_mask", None, 1.5, [0.0, 0.0, 0.0, 1.0]),
        ("sequence_mask", None, 3.0, [1.875, 1.875, 1.875, 1.0]),
        ("geometric_truncate", None, 1.1, [1.1, 1.1, 1.1, 1.0]),
        ("geometric_mask", 0.9, 1.3, [1.2331060, 1.2331060, 1.2331060, 1.0]),
        ("geometric_mask", 0.9, 1.1, [0.0, 0.0, 0.0, 1.0]),
        ("geometric_mask", 1.3, None, [0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_closed_form(mode: str, low: float | None, high: float | None, expected: list[float]) -> None:
    torch.testing.assert_close(correction_weights(mode, OLD, SAMPLER, MASK, low, high), torch.tensor([expected]))


def test_the_product_rejects_long_answers_and_the_geometric_mean_does_not() -> None:
    """A drift of 10 % per token: 2.6 at 10 tokens, 13,780 at 100."""
    for length, kept in ((10, True), (100, False)):
        old, full = torch.full((1, length), math.log(1.1)), torch.ones(1, length, dtype=torch.bool)
        product = correction_weights("sequence_mask", old, torch.zeros(1, length), full, None, 3.0)
        mean = correction_weights("geometric_mask", old, torch.zeros(1, length), full, 0.8, 1.2)
        assert (product[0, 0].item() > 0) is kept
        assert mean[0, 0].item() == pytest.approx(1.1)


def test_a_token_that_the_sampler_could_not_score_is_not_corrected() -> None:
    sampler = torch.tensor([[0.0, float("nan"), 0.0, 0.0]])
    weights = correction_weights("token_truncate", OLD, sampler, MASK, None, 9.0)
    torch.testing.assert_close(weights, torch.tensor([[3.0, 1.0, 1.25, 1.0]]))


def test_a_gap_beyond_twenty_nats_is_held() -> None:
    far = torch.full((1, 4), -300.0)
    weights = correction_weights("token_truncate", SAMPLER, far, MASK, None, None)
    assert weights[0, 0].item() == pytest.approx(math.exp(20.0))


def test_off_policy_completions_with_negative_advantage_are_left_out() -> None:
    """Both have been left by (0.9 + 0.3)/2 = 0.6 nats per token."""
    sampler = torch.tensor([[-1.0, -2.0, -9.0]]).expand(3, 3)
    policy = torch.tensor([[-1.9, -2.3, 0.0]]).expand(3, 3)
    mask = torch.tensor([[True, True, False]]).expand(3, 3)
    advantage = torch.tensor([-1.0, 1.0, 0.0])
    assert on_policy_enough(policy, sampler, advantage, mask, 0.5).tolist() == [0.0, 1.0, 1.0]
    assert on_policy_enough(policy, sampler, advantage, mask, 0.7).tolist() == [1.0, 1.0, 1.0]
