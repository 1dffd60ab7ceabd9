"""Laws that every row of both tables obeys, on random batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boresight.loss.aggregate import AGGREGATES
from boresight.loss.objectives import OBJECTIVES, PREFERENCES
from boresight.loss.policy import Entropy, LogProbs, high_entropy_threshold, policy_loss, policy_total
from boresight.loss.policy_options import PolicyLossOptions
from boresight.loss.preference import (
    aot_partners,
    completion_logps,
    pair_table,
    preference_loss,
    preference_total,
)
from boresight.loss.preference_options import PreferenceLossOptions

ROWS = [(name, level) for name, row in OBJECTIVES.items() for level in row.levels]
SEEDS = st.integers(0, 10_000)


@dataclass(frozen=True)
class Batch:
    """Random completions of uneven length, float64; what stands in the padding is garbage."""

    policy: Tensor
    old: Tensor
    sampler: Tensor
    reference: Tensor
    entropy: Tensor
    advantage: Tensor
    mask: Tensor

    def rows(self, index: Any) -> Batch:
        return Batch(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})


def batch_of(seed: int, size: int = 6, width: int = 5) -> Batch:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    mask = torch.arange(width) < torch.randint(1, width + 1, (size, 1), generator=random)
    policy = -draw(size, width).abs() - 0.1
    near = [policy + 0.3 * draw(size, width) for _ in range(3)]
    entropy = draw(size, width).abs()
    garbage = torch.where(draw(size, width) > 0, float("nan"), -torch.inf)
    tensors = [torch.where(mask, value, garbage) for value in (policy, *near, entropy)]
    return Batch(*tensors, draw(size), mask)


def config_of(name: str, level: str, **options: Any) -> PolicyLossOptions:
    cap = {"epsilon_high": 1.2} if name == "cispo" else {}
    return PolicyLossOptions(loss_type=name, importance_sampling_level=level, **cap, **options)


EVERYTHING: dict[str, Any] = {
    "beta": 0.3,
    "entropy_coef": 0.2,
    "top_entropy_quantile": 0.6,
    "off_policy_mask_threshold": 0.1,
}


def gradient(config: PolicyLossOptions, batch: Batch, parts: list[Any]) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient of the policy's log-probabilities, and mean metrics of a step cut into `parts`."""
    threshold = high_entropy_threshold(batch.entropy[batch.mask], config.top_entropy_quantile)
    shares = [policy_total(config, cut.mask, 9, Entropy(cut.entropy, threshold)) for cut in map(batch.rows, parts)]
    total = torch.stack(shares).sum(0)
    policy = batch.policy.clone().requires_grad_()
    value, sums = 0.0, {}
    for part in parts:
        cut = batch.rows(part)
        logp = LogProbs(policy[part], cut.old, cut.sampler, cut.reference)
        entropy = Entropy(cut.entropy, threshold)
        result = policy_loss(config, logp, cut.advantage, cut.mask, total, entropy=entropy)
        result.loss.backward()
        value += result.loss.item()
        for metric, (sum_, count) in result.metrics.items():
            before = sums.get(metric, (0.0, 0.0))
            sums[metric] = (before[0] + sum_.item(), before[1] + count.item())
    assert policy.grad is not None
    return value, policy.grad, {name: sum_ / count for name, (sum_, count) in sums.items()}


@pytest.mark.parametrize(("name", "level"), ROWS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, cut=st.integers(1, 5))
def test_the_cut_into_micro_batches_changes_nothing(name: str, level: str, seed: int, cut: int) -> None:
    config, batch = config_of(name, level, **EVERYTHING), batch_of(seed)
    whole, cut_up = gradient(config, batch, [slice(0, 6)]), gradient(config, batch, [slice(0, cut), slice(cut, 6)])
    assert whole[0] == pytest.approx(cut_up[0], rel=1e-6)
    torch.testing.assert_close(whole[1], cut_up[1], rtol=1e-6, atol=1e-9)
    assert whole[2] == pytest.approx(cut_up[2], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("name", "level"), ROWS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_padding_changes_nothing_and_gets_no_gradient(name: str, level: str, seed: int) -> None:
    config, batch = config_of(name, level, **EVERYTHING), batch_of(seed)
    value, grad, metrics = gradient(config, batch, [slice(0, 6)])
    assert grad.isfinite().all()
    assert not grad[~batch.mask].any()
    wider = Batch(
        **{
            field: torch.nn.functional.pad(getattr(batch, field), (0, 3), value=0 if field == "mask" else 1e9)
            if getattr(batch, field).dim() == 2
            else getattr(batch, field)
            for field in batch.__dataclass_fields__
        }
    )
    padded = gradient(config, wider, [slice(0, 6)])
    assert padded[0] == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(padded[1][:, :5], grad, rtol=1e-6, atol=1e-9)
    assert padded[2] == pytest.approx(metrics)


@pytest.mark.parametrize(("name", "level"), ROWS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, order=st.permutations(range(6)))
def test_order_changes_nothing(name: str, level: str, seed: int, order: list[int]) -> None:
    config, batch = config_of(name, level, **EVERYTHING), batch_of(seed)
    value, grad, _ = gradient(config, batch, [slice(0, 6)])
    moved = gradient(config, batch.rows(order), [slice(0, 6)])
    assert moved[0] == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(moved[1], grad[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "level"), ROWS)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_on_policy_the_gradient_is_reinforce(name: str, level: str, seed: int) -> None:
    """−A_i ∇ log π of each token under the row's weights; for ratios over the sequence, of their mean or sum."""
    config, batch = config_of(name, level), batch_of(seed)
    total = policy_total(config, batch.mask, 9)
    policy = batch.policy.clone().requires_grad_()
    result = policy_loss(config, LogProbs(policy, batch.policy), batch.advantage, batch.mask, total)
    result.loss.backward()
    weights = AGGREGATES[OBJECTIVES[name].aggregate].weights(batch.mask).double()
    if level == "sequence_sum":
        weights = batch.mask.double()
    expected = -batch.advantage[:, None] * weights / total[0]
    torch.testing.assert_close(policy.grad, expected, rtol=1e-5, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_gspo_equals_grpo_at_length_one(seed: int) -> None:
    batch = batch_of(seed, width=1)
    results = [gradient(config_of("grpo", level), batch, [slice(0, 6)]) for level in ("token", "sequence")]
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


# A stop-gradient has no finite difference to be compared with: those rows are held to closed forms instead.
SMOOTH_ROWS = [row for row in ROWS if row[0] not in ("cispo", "vespo") and row[1] != "sequence_token"]


@pytest.mark.parametrize(("name", "level"), SMOOTH_ROWS)
def test_gradcheck(name: str, level: str) -> None:
    batch = batch_of(3)
    config = config_of(name, level, beta=0.3)
    total = policy_total(config, batch.mask, 9)

    def loss(policy: Tensor) -> Tensor:
        logp = LogProbs(policy, batch.old, batch.sampler, batch.reference)
        return policy_loss(config, logp, batch.advantage, batch.mask, total).loss

    torch.autograd.gradcheck(loss, torch.where(batch.mask, batch.policy, 0.0).requires_grad_())


def preference_config(name: str, **options: Any) -> PreferenceLossOptions:
    smoothing = 0.1 if "label_smoothing" in PREFERENCES[name].reads else 0.0
    return PreferenceLossOptions(loss_type=[name], label_smoothing=smoothing, beta=0.7, **options)


@pytest.mark.parametrize("name", PREFERENCES)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, cut=st.integers(1, 2))
def test_preferences_do_not_depend_on_the_cut(name: str, seed: int, cut: int) -> None:
    config, batch = preference_config(name, ld_alpha=0.4), batch_of(seed)
    reference = completion_logps(batch.reference, batch.mask, 0.4)
    partners = aot_partners(pair_table(completion_logps(batch.policy, batch.mask, 0.4), reference))

    def step(parts: list[tuple[int, int]]) -> tuple[float, Tensor]:
        total = sum(preference_total(batch.mask[2 * start : 2 * stop]) for start, stop in parts)
        policy = batch.policy.clone().requires_grad_()
        value = 0.0
        for start, stop in parts:
            rows = slice(2 * start, 2 * stop)
            loss = preference_loss(
                config, policy[rows], reference[rows], batch.mask[rows], total, shift=0.2, partners=partners[start:stop]
            ).loss
            loss.backward()
            value += loss.item()
        assert policy.grad is not None
        return value, policy.grad

    whole, parts = step([(0, 3)]), step([(0, cut), (cut, 3)])
    assert whole[0] == pytest.approx(parts[0], rel=1e-6)
    torch.testing.assert_close(whole[1], parts[1], rtol=1e-6, atol=1e-9)
    assert whole[1].isfinite().all()
    assert not whole[1][~batch.mask].any()


@pytest.mark.parametrize("name", [name for name in PREFERENCES if name != "aot_unpaired"])
def test_gradcheck_of_preferences(name: str) -> None:
    batch, config = batch_of(5), preference_config(name)
    reference = completion_logps(batch.reference, batch.mask)

    def loss(policy: Tensor) -> Tensor:
        return preference_loss(config, policy, reference, batch.mask, 3.0, shift=0.2).loss

    torch.autograd.gradcheck(loss, torch.where(batch.mask, batch.policy, 0.0).requires_grad_())
