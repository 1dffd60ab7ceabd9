"""TRL 1.16's own `GRPOTrainer._compute_loss`, run unbound on the same tensors, is the oracle."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from boresight.loss.policy import Entropy, LogProbs, high_entropy_threshold, policy_loss, policy_total
from boresight.loss.policy_options import PolicyLossOptions

MAX_COMPLETION_LENGTH = 11
RANDOM = torch.Generator().manual_seed(7)
MASK = torch.arange(9) < torch.tensor([[9], [4], [1], [6]])


def near(value: Tensor, distance: float) -> Tensor:
    return value + distance * torch.randn(value.shape, generator=RANDOM)


POLICY = -torch.rand(4, 9, generator=RANDOM) * 3 - 0.1
OLD, SAMPLER, REFERENCE = near(POLICY, 0.4), near(POLICY, 0.5), near(POLICY, 0.6)
ENTROPY = torch.rand(4, 9, generator=RANDOM)
ADVANTAGE = torch.tensor([1.3, -0.7, 0.4, -1.9])


def sampler_ratio(config: PolicyLossOptions) -> Tensor:
    """The weights that TRL computes after generation, by its rule."""
    gap = (OLD - SAMPLER) * MASK
    mode, high = config.vllm_importance_sampling_mode, config.vllm_importance_sampling_clip_max
    ratio = (gap.sum(-1, keepdim=True) if mode.startswith("sequence") else gap).exp()
    return ratio.clamp(max=high) if mode.endswith("truncate") else ratio.masked_fill(ratio > high, 0.0)


def trl(config: PolicyLossOptions, loss_type: str, level: str, **given: Any) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient and metrics of TRL's code; the object holds what that code reads of its trainer."""
    policy = POLICY.clone().requires_grad_()
    metrics = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, ENTROPY, None),
        get_high_entropy_mask=lambda *a: GRPOTrainer.get_high_entropy_mask(trainer, *a),  # pyright: ignore
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        accelerator=Accelerator(cpu=True),
        model=torch.nn.Identity(),
        args=SimpleNamespace(**vars(config), steps_per_generation=1),
        aux_loss_enabled=False,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=config.beta,
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon if config.epsilon_high is None else config.epsilon_high,
        top_entropy_quantile=config.top_entropy_quantile,
        off_policy_mask_threshold=config.off_policy_mask_threshold,
        use_vllm="sampler" in given,
        vllm_importance_sampling_correction=config.vllm_importance_sampling_correction,
        max_completion_length=MAX_COMPLETION_LENGTH,
        current_gradient_accumulation_steps=1,
        entropy_coef=config.entropy_coef,
        _entropy_bonus_enabled=config.entropy_coef != 0,
        use_adaptive_entropy=False,
        _metrics=metrics,
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 9, dtype=torch.long),
        "completion_mask": MASK.long(),
        "advantages": ADVANTAGE,
        "old_per_token_logps": OLD,
        "ref_per_token_logps": REFERENCE,
        "num_items_in_batch": MASK.sum(),
    }
    if "sampler" in given:
        inputs |= {"sampling_per_token_logps": SAMPLER, "importance_sampling_ratio": sampler_ratio(config)}
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)  # pyright: ignore
    loss.backward()
    assert policy.grad is not None
    return loss.item(), policy.grad, {name: values[0] for name, values in metrics["train"].items()}


def ours(config: PolicyLossOptions, **given: Any) -> tuple[float, Tensor, dict[str, float]]:
    policy = POLICY.clone().requires_grad_()
    threshold = high_entropy_threshold(ENTROPY[MASK], config.top_entropy_quantile)
    entropy = Entropy(ENTROPY, threshold)
    total = policy_total(config, MASK, MAX_COMPLETION_LENGTH, entropy)
    logp = LogProbs(policy, OLD, reference=REFERENCE, **given)
    result = policy_loss(config, logp, ADVANTAGE, MASK, total, entropy=entropy)
    result.loss.backward()
    assert policy.grad is not None
    means = {name: (value / count).item() for name, (value, count) in result.metrics.items()}
    extremes = {name: value.item() for name, value in (result.minima | result.maxima).items()}
    return result.loss.item(), policy.grad, means | extremes


def assert_same(ours: tuple[float, Tensor, dict[str, float]], theirs: tuple[float, Tensor, dict[str, float]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-7)
    assert theirs[1].abs().max() > 1e-3
    shared = ours[2].keys() & theirs[2].keys()
    assert {name: ours[2][name] for name in shared} == pytest.approx(
        {name: theirs[2][name] for name in shared}, rel=1e-5
    )


ROWS = [
    ("grpo", "token"),
    ("grpo", "sequence"),
    ("bnpo", "token"),
    ("dr_grpo", "token"),
    ("dapo", "token"),
    ("luspo", "sequence"),
    ("cispo", "token"),
    ("sapo", "token"),
    ("sapo", "sequence"),
    ("vespo", "token"),
]


def config_of(loss_type: str, level: str, **options: Any) -> PolicyLossOptions:
    cap = {"epsilon_high": 1.3} if loss_type == "cispo" else {}
    return PolicyLossOptions(loss_type=loss_type, importance_sampling_level=level, **(options | cap))


@pytest.mark.parametrize(("loss_type", "level"), ROWS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.3, "use_bias_correction_kl": False},
        {"entropy_coef": 0.2, "top_entropy_quantile": 0.4, "beta": 0.3, "use_bias_correction_kl": False},
        {"off_policy_mask_threshold": 0.01},
    ],
    ids=["plain", "kl", "entropy", "off_policy"],
)
def test_every_loss_type_that_trl_has(loss_type: str, level: str, options: dict[str, Any]) -> None:
    config = config_of(loss_type, level, **options)
    theirs = trl(config, loss_type, level)
    assert_same(ours(config), theirs)
    assert {"kl"} <= theirs[2].keys() if config.beta else "kl" not in theirs[2]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo", "sapo", "vespo"])
def test_the_unbiased_kl_at_token_level(loss_type: str) -> None:
    """The `kl` metric differs: TRL logs it after the ratio is multiplied in, we log the estimate itself."""
    config = config_of(loss_type, "token", beta=0.3)
    mine, theirs = ours(config), trl(config, loss_type, "token")
    assert mine[2].pop("kl") != pytest.approx(theirs[2].pop("kl"), rel=1e-3)
    assert_same(mine, theirs)


@pytest.mark.parametrize(("loss_type", "level"), [("grpo", "token"), ("grpo", "sequence"), ("dapo", "token")])
def test_two_sided_clip_and_asymmetric_epsilon(loss_type: str, level: str) -> None:
    config = config_of(loss_type, level, epsilon=0.1, epsilon_high=0.15, delta=1.3)
    assert_same(ours(config), trl(config, loss_type, level))


MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
# VESPO takes the correction into its own ratio, by token alone; both refuse the rest.
CORRECTED = [(*row, mode) for row in ROWS for mode in MODES if row[0] != "vespo" or mode.startswith("token")]


@pytest.mark.parametrize(("loss_type", "level", "mode"), CORRECTED)
def test_the_sampler_correction(loss_type: str, level: str, mode: str) -> None:
    config = config_of(
        loss_type, level, vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5, beta=0.3,
        use_bias_correction_kl=False,
    )  # fmt: skip
    theirs = trl(config, loss_type, level, sampler=SAMPLER)
    assert_same(ours(config, sampler=SAMPLER), theirs)
    assert theirs[0] != pytest.approx(ours(config)[0], rel=1e-3)


def test_rloo() -> None:
    """TRL keeps RLOO in a trainer of its own, with the KL in the reward: parity without KL."""
    policy = POLICY.clone().requires_grad_()
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, ENTROPY, None),
        accelerator=Accelerator(cpu=True),
        model=torch.nn.Identity(),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 9, dtype=torch.long),
        "completion_mask": MASK.long(),
        "advantages": ADVANTAGE,
        "old_logps": (OLD * MASK).sum(-1),
    }
    loss = RLOOTrainer._compute_loss(trainer, None, inputs)  # pyright: ignore
    loss.backward()
    assert policy.grad is not None
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert_same(ours(PolicyLossOptions(loss_type="rloo")), (loss.item(), policy.grad, metrics))
