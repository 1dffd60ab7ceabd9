from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from boresight.loss import preference_terms as terms

BETA = 0.5
CHOSEN, REJECTED = torch.tensor([1.2]), torch.tensor([-0.4])
MARGIN = CHOSEN - REJECTED  # h = 0.8, R_c = 0.6, R_r = −0.2


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (lambda: terms.sigmoid(MARGIN, BETA), 0.3711007),
        (lambda: terms.sigmoid(MARGIN, BETA, 0.1), 0.4511007),
        (lambda: terms.robust(MARGIN, BETA, 0.1), 0.2711007),
        (lambda: terms.hinge(MARGIN, BETA), 0.2),
        (lambda: terms.hinge(MARGIN, 0.7), 0.0),
        (lambda: terms.ipo(torch.tensor([0.3]), BETA), 0.49),
        (lambda: terms.exo_pair(MARGIN, BETA, 0.1), 0.1674351),
        (lambda: terms.nca_pair(CHOSEN, REJECTED, BETA), 1.2553014),
        (lambda: terms.bco_pair(CHOSEN, REJECTED, BETA, 0.0), 1.0356268),
        (lambda: terms.bco_pair(CHOSEN, REJECTED, BETA, 0.3), 1.0284322),
        (lambda: terms.sppo_hard(CHOSEN, REJECTED, BETA), 0.4),
        (lambda: terms.apo_zero(CHOSEN, REJECTED, BETA), 0.8045097),
        (lambda: terms.apo_down(CHOSEN, REJECTED, BETA), 0.9556818),
        (lambda: terms.discopop(MARGIN, BETA, 0.05), 0.4493290),
        (lambda: terms.discopop(MARGIN, BETA, 2.0), 0.4179350),
        (lambda: terms.sft(torch.tensor([-3.0]), torch.tensor([4.0])), 0.75),
        (lambda: terms.divergence_scores(CHOSEN, "reverse_kl", 0.5), 1.2),
        (lambda: terms.divergence_scores(CHOSEN, "forward_kl", 0.5), 0.6988058),
        (lambda: terms.divergence_scores(CHOSEN, "js_divergence", 0.5), 0.4298647),
        (lambda: terms.divergence_scores(CHOSEN, "alpha_divergence", 0.5), 0.9023768),
        (lambda: terms.divergence_scores(CHOSEN, "alpha_divergence", 1.0), 1.2),
    ],
)
def test_closed_form(term: Callable[[], torch.Tensor], expected: float) -> None:
    assert term().item() == pytest.approx(expected, rel=1e-5)


def test_exo_is_zero_where_the_policy_already_prefers_as_often_as_the_labels() -> None:
    assert terms.exo_pair(torch.tensor([math.log(0.9 / 0.1)]), 1.0, 0.1).item() == pytest.approx(0.0, abs=1e-6)


def test_rank_partners_match_sorted_with_sorted() -> None:
    partners = terms.rank_partners(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0]))
    assert partners.tolist() == [30.0, 10.0, 20.0]


def test_aot_unpaired_has_the_value_and_both_gradients_of_the_sorted_loss() -> None:
    chosen = torch.tensor([3.0, -1.0, 2.0], requires_grad=True)
    rejected = torch.tensor([0.5, 1.5, -2.0], requires_grad=True)
    sorted_loss = terms.sigmoid(chosen.sort().values - rejected.sort().values, 0.7, 0.1).sum()
    expected = torch.autograd.grad(sorted_loss, (chosen, rejected))
    loss = terms.aot_unpaired(
        chosen, rejected, terms.rank_partners(chosen, rejected), terms.rank_partners(rejected, chosen), 0.7, 0.1
    ).sum()
    torch.testing.assert_close(loss, sorted_loss)
    torch.testing.assert_close(torch.autograd.grad(loss, (chosen, rejected)), expected)


def test_wpo_weight() -> None:
    logp, collision = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-0.5, -0.7, -9.0]])
    weight = terms.wpo_weight(logp, collision, torch.tensor([[True, True, False]]))
    assert weight.item() == pytest.approx(math.exp(-0.9))
