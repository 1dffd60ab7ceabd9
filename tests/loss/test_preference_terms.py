from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from boresight.loss import preference_terms as terms
from boresight.loss.preference_options import PreferenceLossOptions
from boresight.loss.preference_terms import Pairs


def pairs(**given: Any) -> Pairs:
    """Log ratios 1.2 and −0.4: with β 0.5, h = 0.8, R_c = 0.6, R_r = −0.2."""
    fields: dict[str, Any] = {
        "chosen": torch.tensor([1.2]),
        "rejected": torch.tensor([-0.4]),
        "margin": torch.tensor([1.6]),
        "mean_margin": torch.tensor([0.3]),
        "chosen_logp": torch.tensor([-3.0]),
        "chosen_length": torch.tensor([4.0]),
        "policy_margin": torch.tensor([9.0]),
        "partners": torch.full((1, 3), 9.0),
        "shift": 0.0,
    }
    size = max((len(value) for value in given.values() if isinstance(value, torch.Tensor)), default=1)
    known = {name: value if name == "shift" else value.expand(size, *value.shape[1:]) for name, value in fields.items()}
    return Pairs(**known | given)


def options(**given: Any) -> PreferenceLossOptions:
    return PreferenceLossOptions(**{"beta": 0.5, **given})


def scores(f_divergence_type: str, **given: Any) -> torch.Tensor:
    return terms.divergence_scores(torch.tensor([1.2]), options(f_divergence_type=f_divergence_type, **given))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (lambda: terms.sigmoid(pairs(), options()), 0.3711007),
        (lambda: terms.sigmoid(pairs(), options(label_smoothing=0.1)), 0.4511007),
        (lambda: terms.sigmoid_norm(pairs(), options()), 0.6209571),  # log(1 + e^{−0.15})
        (lambda: terms.robust(pairs(), options(label_smoothing=0.1)), 0.2711007),
        (lambda: terms.hinge(pairs(), options()), 0.2),
        (lambda: terms.hinge(pairs(), options(beta=0.7)), 0.0),
        (lambda: terms.ipo(pairs(), options()), 0.49),
        (lambda: terms.exo_pair(pairs(), options(label_smoothing=0.1)), 0.1674351),
        (lambda: terms.nca_pair(pairs(), options()), 1.2553014),
        (lambda: terms.bco_pair(pairs(), options()), 1.0356268),
        (lambda: terms.bco_pair(pairs(shift=0.3), options()), 1.0284322),
        (lambda: terms.sppo_hard(pairs(), options()), 0.4),
        (lambda: terms.apo_zero(pairs(), options()), 0.8045097),
        (lambda: terms.apo_down(pairs(), options()), 0.9556818),
        (lambda: terms.discopop(pairs(), options(discopop_tau=0.05)), 0.4493290),
        (lambda: terms.discopop(pairs(), options(discopop_tau=2.0)), 0.4179350),
        (lambda: terms.sft(pairs(), options()), 0.75),
        (lambda: scores("reverse_kl"), 1.2),
        (lambda: scores("forward_kl"), 0.6988058),
        (lambda: scores("js_divergence"), 0.4298647),
        (lambda: scores("alpha_divergence", f_alpha_divergence_coef=0.5), 0.9023768),
        (lambda: scores("alpha_divergence", f_alpha_divergence_coef=1.0), 1.2),
    ],
)
def test_closed_form(term: Callable[[], torch.Tensor], expected: float) -> None:
    assert term().item() == pytest.approx(expected, rel=1e-5)


def test_exo_is_zero_where_the_policy_already_prefers_as_often_as_the_labels() -> None:
    as_often = pairs(margin=torch.tensor([math.log(0.9 / 0.1)]))
    loss = terms.exo_pair(as_often, options(beta=1.0, label_smoothing=0.1))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_rank_partners_match_sorted_with_sorted() -> None:
    partners = terms.rank_partners(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([10.0, 30.0, 20.0]))
    assert partners.tolist() == [30.0, 10.0, 20.0]


def test_aot_unpaired_has_the_value_and_both_gradients_of_the_sorted_loss() -> None:
    chosen = torch.tensor([3.0, -1.0, 2.0], requires_grad=True)
    rejected = torch.tensor([0.5, 1.5, -2.0], requires_grad=True)
    config = options(beta=0.7, label_smoothing=0.1)
    sorted_loss = terms.sigmoid(pairs(margin=chosen.sort().values - rejected.sort().values), config).sum()
    expected = torch.autograd.grad(sorted_loss, (chosen, rejected))
    own, others = terms.rank_partners(chosen, rejected), terms.rank_partners(rejected, chosen)
    partners = torch.stack([torch.zeros(3), own, others], dim=-1)
    loss = terms.aot_unpaired(pairs(chosen=chosen, rejected=rejected, partners=partners), config).sum()
    torch.testing.assert_close(loss, sorted_loss)
    torch.testing.assert_close(torch.autograd.grad(loss, (chosen, rejected)), expected)


def test_wpo_weight() -> None:
    logp, collision = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-0.5, -0.7, -9.0]])
    weight = terms.wpo_weight(logp, collision, torch.tensor([[True, True, False]]))
    assert weight.item() == pytest.approx(math.exp(-0.9))
