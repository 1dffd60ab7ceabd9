from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from boresight.errors import ShapeError
from boresight.loss.policy import (
    Entropy,
    LogProbs,
    PolicyLoss,
    counted_mask,
    high_entropy_threshold,
    policy_loss,
    policy_total,
)
from boresight.loss.policy_options import PolicyLossOptions

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
RATIO = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.0, 1.0]])
ADVANTAGE = torch.tensor([2.0, -1.0])
ENTROPY = torch.tensor([[0.4, 1.6, 0.7], [0.1, 9.0, 9.0]])


def loss_of(config: PolicyLossOptions, **given: Any) -> PolicyLoss:
    """With `sampler`, `reference`, `entropy` and `has_image` where they are given."""
    logp = {name: given.pop(name) for name in ("sampler", "reference") if name in given}
    total = policy_total(config, MASK, 10, given.get("entropy"))
    return policy_loss(config, LogProbs(OLD + RATIO.log(), OLD, **logp), ADVANTAGE, MASK, total, **given)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # per token −2.6, −1.0, −2.2 | 0.8
        ({"loss_type": "dapo", "epsilon_high": 0.3}, -5.0 / 4),
        ({"loss_type": "bnpo", "epsilon_high": 0.3}, -5.0 / 4),
        ({"loss_type": "grpo", "epsilon_high": 0.3}, (-5.8 / 3 + 0.8) / 2),
        ({"loss_type": "dr_grpo", "epsilon_high": 0.3}, -5.0 / 20),
        # ratio of the sequence (1.5 · 0.5 · 1.1)^{1/3} = 0.9378881 | 0.5, clipped to 0.8
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, (-2 * 0.9378881 + 0.8) / 2),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence_token"}, (-2 * 0.9378881 + 0.8) / 2),
        ({"loss_type": "luspo"}, (-3 * 2 * 0.9378881 + 0.8) / 2),
        ({"loss_type": "rloo"}, (-2 * 0.825 + 0.8) / 2),
    ],
)
def test_closed_form(options: dict[str, Any], expected: float) -> None:
    assert loss_of(PolicyLossOptions(**options)).loss.item() == pytest.approx(expected, rel=1e-5)


def test_divergence_is_added_after_the_correction() -> None:
    sampler, reference = OLD - math.log(4.0), OLD + RATIO.log() + 1.0
    plain = PolicyLossOptions(epsilon_high=0.3, beta=0.5, use_bias_correction_kl=False)
    k3 = math.e - 2
    expected = 2.0 * (-5.0 / 4) + 0.5 * k3
    assert loss_of(plain, sampler=sampler, reference=reference).loss.item() == pytest.approx(expected)
    unbiased = PolicyLossOptions(epsilon_high=0.3, beta=0.5)
    expected = 2.0 * (-5.0 / 4) + 0.5 * k3 * (1.5 + 0.5 + 1.1 + 0.5) / 4
    result = loss_of(unbiased, sampler=sampler, reference=reference)
    assert result.loss.item() == pytest.approx(expected)
    kl, count = result.metrics["kl"]
    assert (kl / count).item() == pytest.approx(k3)


def test_the_entropy_bonus_is_the_mean_over_tokens_whatever_the_objective() -> None:
    for loss_type in ("dapo", "grpo", "dr_grpo"):
        without = loss_of(PolicyLossOptions(loss_type=loss_type)).loss
        bonus = loss_of(PolicyLossOptions(loss_type=loss_type, entropy_coef=0.5), entropy=Entropy(ENTROPY)).loss
        assert (without - bonus).item() == pytest.approx(0.5 * 2.8 / 4)


def test_only_tokens_of_high_entropy_keep_their_policy_loss() -> None:
    config = PolicyLossOptions(epsilon_high=0.3, top_entropy_quantile=0.5, entropy_coef=1.0)
    threshold = high_entropy_threshold(ENTROPY[MASK], 0.5)
    assert threshold == pytest.approx(0.55)
    loss = loss_of(config, entropy=Entropy(ENTROPY, threshold)).loss
    assert loss.item() == pytest.approx((-1.0 - 2.2) / 4 - (1.6 + 0.7) / 2)


def test_truncated_completions_leave_the_loss_where_asked() -> None:
    truncated = torch.tensor([True, False])
    assert counted_mask(PolicyLossOptions(), MASK, truncated).tolist() == MASK.tolist()
    masked = counted_mask(PolicyLossOptions(mask_truncated_completions=True), MASK, truncated)
    assert masked.tolist() == [[False] * 3, [True, False, False]]


def test_clip_metrics() -> None:
    result = loss_of(PolicyLossOptions(epsilon_high=0.3))
    shares = {name: (value / count).item() for name, (value, count) in result.metrics.items()}
    assert shares["clip_ratio/low_mean"] == pytest.approx(1 / 4)
    assert shares["clip_ratio/high_mean"] == pytest.approx(1 / 4)
    assert shares["clip_ratio/region_mean"] == pytest.approx(2 / 4)
    assert result.minima["clip_ratio/low_min"].item() == 0.0
    assert result.maxima["clip_ratio/high_max"].item() == pytest.approx(1 / 3)
    by_sequence = loss_of(PolicyLossOptions(importance_sampling_level="sequence"))
    value, count = by_sequence.metrics["clip_ratio/low_mean"]
    assert (value.item(), count.item()) == (1.0, 2.0)


def test_drift_metrics_are_split_by_images() -> None:
    sampler = OLD - torch.tensor([[0.1, -0.2, 0.3], [0.7, 9.0, 9.0]])
    sampler[0, 2] = float("nan")
    result = loss_of(PolicyLossOptions(), sampler=sampler, has_image=torch.tensor([True, False]))
    name = "sampling/sampling_logp_difference"
    means = {key: (value / count).item() for key, (value, count) in result.metrics.items()}
    assert means[f"{name}/mean"] == pytest.approx(1.0 / 3)
    assert means[f"{name}/mean/with_images"] == pytest.approx(0.15)
    assert means[f"{name}/mean/without_images"] == pytest.approx(0.7)
    assert result.maxima[f"{name}/max"].item() == pytest.approx(0.7)
    assert result.maxima[f"{name}/max/with_images"].item() == pytest.approx(0.2)
    assert means["sampling/frac_unreported"] == pytest.approx(1 / 4)
    assert result.maxima["sampling/importance_sampling_ratio/max"].item() == 2.0
    assert result.minima["sampling/importance_sampling_ratio/min"].item() == pytest.approx(math.exp(-0.2))


def test_no_correction_where_it_is_switched_off() -> None:
    off = PolicyLossOptions(vllm_importance_sampling_correction=False)
    assert loss_of(off, sampler=OLD - 1.0).loss.item() == loss_of(off).loss.item()


def test_a_completion_that_nobody_sampled_is_held_against_the_old_policy() -> None:
    """`off_policy_mask_threshold`: the second completion has A < 0 and was left by log 2 = 0.69 nats per token."""
    unknown = OLD.clone()
    unknown[1] = torch.nan
    for threshold, expected in ((0.7, -5.0 / 4), (0.6, -5.8 / 4)):
        config = PolicyLossOptions(loss_type="dapo", epsilon_high=0.3, off_policy_mask_threshold=threshold)
        assert loss_of(config).loss.item() == pytest.approx(expected)
        assert loss_of(config, sampler=unknown).loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"entropy_coef": 0.1}, {"top_entropy_quantile": 0.5}])
def test_a_missing_tensor_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match=next(iter(options))):
        loss_of(PolicyLossOptions(**options))


def test_shapes_are_checked() -> None:
    config = PolicyLossOptions()
    total = policy_total(config, MASK, 10)
    with pytest.raises(Exception, match="advantage"):
        policy_loss(config, LogProbs(OLD, OLD), ADVANTAGE[:1], MASK, total)
