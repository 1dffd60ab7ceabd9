from __future__ import annotations

import math

import torch

from boresight.loss import diagnostics
from boresight.loss.policy_options import PolicyLossOptions
from boresight.loss.surrogate import Terms

RATIO = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.5, 1.0]])
TERMS = Terms(
    log_ratio=RATIO.log(),
    policy=torch.zeros(2, 3),
    advantage=torch.tensor([2.0, -1.0]),
    mask=torch.tensor([[True, True, True], [True, True, False]]),
)


def test_a_ratio_is_clipped_from_above_where_the_advantage_is_positive_and_from_below_where_it_is_not() -> None:
    shares = diagnostics.clipped_shares(TERMS, PolicyLossOptions(epsilon=0.2, epsilon_high=0.05))
    assert shares["clip_ratio/high_mean"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert shares["clip_ratio/low_mean"].tolist() == [[0, 0, 0], [1, 0, 0]]
    assert shares["clip_ratio/region_mean"].tolist() == [[1, 0, 1], [1, 0, 0]]


def test_gmpo_bounds_the_logarithm() -> None:
    for epsilon, high in ((math.log(1.4), 1), (math.log(1.6), 0)):
        shares = diagnostics.gmpo_shares(TERMS, PolicyLossOptions(gmpo_epsilon=epsilon))
        assert shares["clip_ratio/high_mean"].tolist() == [[high, 0, 0], [0, 0, 0]]
        assert shares["clip_ratio/low_mean"].tolist() == [[0, 0, 0], [1, 0, 0]]


def test_cispo_counts_capped_weights_of_positive_advantage() -> None:
    share = diagnostics.cispo_share(TERMS, PolicyLossOptions(epsilon_high=1.2))
    assert share["cispo_clip_ratio"].tolist() == [[1, 0, 0], [0, 0, 0]]


def test_vespos_weight_stands_on_every_token_that_counts() -> None:
    terms = Terms(
        torch.tensor([[0.3, 0.2, 0.0]]), torch.zeros(1, 3), torch.ones(1), torch.tensor([[True, True, False]])
    )
    weights = diagnostics.vespo_weights(terms, PolicyLossOptions())["vespo/phi_seq_mean"]
    # e^{2·0.5 + 3(1 − e^{0.5})}
    torch.testing.assert_close(weights, torch.tensor([[0.3882278, 0.3882278, 0.0]]))
