from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from boresight.errors import ConfigError, ShapeError
from boresight.loss.objectives import PREFERENCES
from boresight.loss.preference import aot_partners, completion_logps, pair_table, preference_loss, preference_total
from boresight.loss.preference_options import MPO, PreferenceLossOptions

# chosen, rejected, chosen, rejected; sums −3.5, −1.0, −2.0, −3.0
LOGP = torch.tensor([[-1.0, -2.0, -0.5], [-0.4, -0.6, 7.0], [-2.0, 7.0, 7.0], [-1.5, -0.5, -1.0]])
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, True]])
REFERENCE = torch.tensor([-4.7, -0.6, -2.3, -2.8])  # log ratios 1.2, −0.4, 0.3, −0.2


def config_of(*names: str, **options: Any) -> PreferenceLossOptions:
    return PreferenceLossOptions(loss_type=list(names), **options)


def value_of(config: PreferenceLossOptions, **given: Any) -> float:
    return preference_loss(config, LOGP, REFERENCE, MASK, preference_total(MASK), **given).loss.item()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_sums_of_completions() -> None:
    torch.testing.assert_close(completion_logps(LOGP, MASK), torch.tensor([-3.5, -1.0, -2.0, -3.0]))


def test_ld_alpha_weighs_the_tokens_by_which_one_is_longer() -> None:
    expected = torch.tensor([-3.0 + 0.25 * -0.5, -1.0, -2.0, -1.5 + 0.25 * -1.5])
    torch.testing.assert_close(completion_logps(LOGP, MASK, 0.25), expected)
    torch.testing.assert_close(completion_logps(LOGP, MASK, 1.0), completion_logps(LOGP, MASK))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of("sigmoid", beta=0.5), (-log_sigmoid(0.8) - log_sigmoid(0.25)) / 2),
        (config_of("hinge", beta=0.5), (0.2 + 0.75) / 2),
        # per-token means 0.4 + 0.2 = 0.6 and 0.3 + 0.2/3
        (config_of("ipo", beta=0.5), (0.4**2 + (1.1 / 3 - 1) ** 2) / 2),
        (config_of("sigmoid_norm", beta=0.5), (-log_sigmoid(0.3) - log_sigmoid(0.55 / 3)) / 2),
        (config_of("sft"), (3.5 / 3 + 2.0) / 2),
        # margins −2.5, 1.0 against the reference's −4.1, 0.5
        (config_of("aot", beta=0.5), (-log_sigmoid(0.8) - log_sigmoid(0.25)) / 2),
        # chosen 0.3, 1.2 against rejected −0.4, −0.2
        (config_of("aot_unpaired", beta=0.5), (-log_sigmoid(0.35) - log_sigmoid(0.7)) / 2),
    ],
    ids=lambda value: value.loss_type[0] if isinstance(value, PreferenceLossOptions) else "",
)
def test_closed_form(config: PreferenceLossOptions, expected: float) -> None:
    assert value_of(config) == pytest.approx(expected, rel=1e-5)


def test_a_sum_is_the_weighted_sum_of_its_rows() -> None:
    parts = [value_of(config_of(name), shift=0.05) for name in ("sigmoid", "bco_pair", "sft")]
    expected = 0.8 * parts[0] + 0.2 * parts[1] + 1.0 * parts[2]
    assert value_of(PreferenceLossOptions(**MPO), shift=0.05) == pytest.approx(expected)


def test_mpo_with_one_weight_is_dpo_or_sft_on_chosen() -> None:
    names = MPO["loss_type"]
    assert value_of(config_of(*names, loss_weights=[1.0, 0.0, 0.0])) == pytest.approx(value_of(config_of("sigmoid")))
    per_sequence_mean = (3.5 / 3 + 2.0) / 2
    assert value_of(config_of(*names, loss_weights=[0.0, 0.0, 1.0])) == pytest.approx(per_sequence_mean)


def test_dpo_at_zero_margin_is_log_two() -> None:
    reference = completion_logps(LOGP, MASK)
    result = preference_loss(config_of("sigmoid"), LOGP, reference, MASK, 2.0)
    assert result.loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust"])
def test_swapping_chosen_and_rejected_negates_the_margin(name: str) -> None:
    swap = torch.tensor([1, 0, 3, 2])
    config = config_of(name)
    swapped = preference_loss(config, LOGP[swap], REFERENCE[swap], MASK[swap], 2.0)
    ours = preference_loss(config, LOGP, REFERENCE, MASK, 2.0)
    assert swapped.metrics["rewards/margins"][0].item() == pytest.approx(-ours.metrics["rewards/margins"][0].item())
    assert swapped.loss.item() > ours.loss.item()


@pytest.mark.parametrize("name", PREFERENCES)
def test_equal_answers_and_empty_answers_have_a_finite_loss_and_gradient(name: str) -> None:
    config = config_of(name, label_smoothing=0.1 if "label_smoothing" in PREFERENCES[name].reads else 0.0)
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-0.5, 0.0], [0.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, True], [True, False], [False, False]])
    loss = preference_loss(config, logp, torch.tensor([-2.5, -2.5, -1.0, 0.0]), mask, 2.0).loss
    loss.backward()
    assert logp.grad is not None
    assert loss.isfinite()
    assert logp.grad.isfinite().all()


def test_metrics_and_the_sums_that_move_the_shift() -> None:
    result = preference_loss(PreferenceLossOptions(**MPO), LOGP, REFERENCE, MASK, 2.0, shift=0.05)
    means = {name: (value / count).item() for name, (value, count) in result.metrics.items()}
    assert means["rewards/chosen"] == pytest.approx(0.1 * 0.75)
    assert means["rewards/rejected"] == pytest.approx(0.1 * -0.3)
    assert means["rewards/margins"] == pytest.approx(0.1 * 1.05)
    assert means["rewards/accuracies"] == 1.0
    assert means["logps/chosen"] == pytest.approx(-2.75)
    assert means["logps/rejected"] == pytest.approx(-2.0)
    assert means["loss/bco_shift"] == pytest.approx(0.05)
    assert means["loss/bco_pair_weighted"] == pytest.approx(0.2 * means["loss/bco_pair"])
    assert result.reward_sum.tolist() == pytest.approx([0.1 * 0.45, 2.0])


def test_wpo_weighs_pairs_by_how_much_they_are_the_policys_own() -> None:
    collision = LOGP.masked_fill(MASK, 0.0).add(torch.tensor([[-0.5], [-0.1], [-0.9], [-0.3]]))
    own = [math.exp(-3.5 / 3 + 0.5) * math.exp(-0.5 + 0.1), math.exp(-2.0 + 0.9) * math.exp(-1.0 + 0.3)]
    expected = (-own[0] * log_sigmoid(0.8) - own[1] * log_sigmoid(0.25)) / 2
    config = config_of("sigmoid", beta=0.5, use_weighting=True)
    assert value_of(config, log_collision=collision) == pytest.approx(expected)
    with pytest.raises(ShapeError, match="log_collision"):
        value_of(config)


def test_coupled_rows_split_over_micro_batches_with_partners_and_refuse_without() -> None:
    partners = aot_partners(pair_table(completion_logps(LOGP, MASK), REFERENCE))
    for name in ("aot", "aot_unpaired"):
        config = config_of(name)
        halves = [
            preference_loss(
                config,
                LOGP[2 * n : 2 * n + 2],
                REFERENCE[2 * n : 2 * n + 2],
                MASK[2 * n : 2 * n + 2],
                2.0,
                partners=partners[n : n + 1],
            )
            for n in (0, 1)
        ]
        assert sum(half.loss.item() for half in halves) == pytest.approx(value_of(config))
        with pytest.raises(ConfigError, match="over the whole optimizer step"):
            preference_loss(config, LOGP[:2], REFERENCE[:2], MASK[:2], 2.0)


def test_an_odd_number_of_completions_is_refused() -> None:
    with pytest.raises(ShapeError, match="3 completions"):
        preference_loss(config_of("sigmoid"), LOGP[:3], REFERENCE[:3], MASK[:3], 1.0)


def test_a_bare_name_is_one_loss() -> None:
    bare = PreferenceLossOptions()
    bare.loss_type = "ipo"  # pyright: ignore[reportAttributeAccessIssue]
    assert value_of(bare) == value_of(config_of("ipo"))
