"""TRL 1.16's own `DPOTrainer._compute_loss`, run unbound on the same tensors, is the oracle."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import DPOTrainer

from boresight.loss.objectives import PREFERENCES
from boresight.loss.preference import completion_logps, preference_loss
from boresight.loss.preference_options import PreferenceLossOptions, check_preference_loss

RANDOM = torch.Generator().manual_seed(11)
LENGTHS = torch.tensor([7, 4, 2, 6, 5, 5])  # chosen, rejected, chosen, …
MASK = torch.arange(7) < LENGTHS[:, None]
POLICY = (-torch.rand(6, 7, generator=RANDOM) * 2 - 0.1) * MASK
REFERENCE = (POLICY + 0.5 * torch.randn(6, 7, generator=RANDOM)) * MASK
COLLISION = -torch.rand(6, 7, generator=RANDOM)
CHOSEN_FIRST = torch.tensor([0, 2, 4, 1, 3, 5])


def trl(config: PreferenceLossOptions) -> tuple[float, Tensor, dict[str, float]]:
    policy = POLICY.clone().requires_grad_()
    zeros = torch.zeros(6, 7)
    metrics = {"train": defaultdict(list)}
    mask = torch.cat([torch.zeros(6, 1, dtype=torch.long), MASK.long()], dim=1)[CHOSEN_FIRST]
    reference = completion_logps(REFERENCE, MASK, config.ld_alpha)
    outputs = SimpleNamespace(
        log_probs=(policy * MASK)[CHOSEN_FIRST], log_sum_sq_probs=COLLISION[CHOSEN_FIRST], entropy=zeros, mean_logits=zeros,
        is_top1=zeros.bool(),
    )  # fmt: skip
    trainer = SimpleNamespace(
        model=torch.nn.Identity(),
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(discopop_tau=config.discopop_tau),
        loss_types=config.loss_type,
        loss_weights=config.loss_weights or [1.0] * len(config.loss_type),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=metrics,
        **{
            name: getattr(config, name)
            for name in ("beta", "ld_alpha", "label_smoothing", "use_weighting", "f_divergence_type")
        },
        f_alpha_divergence_coef=config.f_alpha_divergence_coef,
    )
    inputs = {
        "input_ids": torch.zeros(6, 8, dtype=torch.long),
        "attention_mask": torch.ones(6, 8, dtype=torch.long),
        "completion_mask": mask,
        "ref_chosen_logps": reference[0::2],
        "ref_rejected_logps": reference[1::2],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)  # pyright: ignore
    loss.backward()
    assert policy.grad is not None
    return loss.item(), policy.grad, {name: values[0] for name, values in metrics["train"].items()}


def ours(config: PreferenceLossOptions, shift: float = 0.0) -> tuple[float, Tensor, dict[str, float]]:
    check_preference_loss(config)
    policy = POLICY.clone().requires_grad_()
    reference = completion_logps(REFERENCE, MASK, config.ld_alpha)
    result = preference_loss(config, policy, reference, MASK, 3.0, shift=shift, log_collision=COLLISION)
    result.loss.backward()
    assert policy.grad is not None
    means = {name: (value / count).item() for name, (value, count) in result.metrics.items()}
    return result.loss.item(), policy.grad, means


def config_of(*names: str, **options: Any) -> PreferenceLossOptions:
    return PreferenceLossOptions(loss_type=list(names), **options)


def assert_same(config: PreferenceLossOptions) -> None:
    mine, theirs = ours(config), trl(config)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-5, atol=1e-7)
    assert theirs[1].abs().max() > 1e-4
    for name in ("chosen", "rejected", "margins", "accuracies"):
        assert mine[2][f"rewards/{name}"] == pytest.approx(theirs[2][f"rewards/{name}"], rel=1e-5)
    for name in ("chosen", "rejected"):
        assert mine[2][f"logps/{name}"] == pytest.approx(theirs[2][f"logps/{name}"], rel=1e-5)


# TRL takes the token mean of the micro-batch for `sft`, and reads no label smoothing for `sigmoid`: see below.
SAME = [name for name in PREFERENCES if name != "sft"]


@pytest.mark.parametrize("name", SAME)
def test_every_loss_that_trl_has(name: str) -> None:
    smoothing = 0.1 if name in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    assert_same(config_of(name, beta=0.6, label_smoothing=smoothing))


@pytest.mark.parametrize("name", [name for name in SAME if PREFERENCES[name].reads >= {"f_divergence_type"}])
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_f_divergences(name: str, divergence: str) -> None:
    alpha = {"f_alpha_divergence_coef": 0.3} if divergence == "alpha_divergence" else {}
    smoothing = 0.1 if name in ("robust", "exo_pair") else 0.0
    assert_same(config_of(name, label_smoothing=smoothing, f_divergence_type=divergence, **alpha))


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "bco_pair"])
def test_length_desensitised(name: str) -> None:
    assert_same(config_of(name, ld_alpha=0.3))


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "apo_zero"])
def test_wpo(name: str) -> None:
    """Not `hinge`: TRL multiplies the weight in place, which breaks the backward of its relu."""
    assert_same(config_of(name, use_weighting=True))


def test_a_weighted_sum() -> None:
    assert_same(config_of("sigmoid", "bco_pair", "hinge", loss_weights=[0.8, 0.2, 0.5], beta=0.4))


def test_bco_without_a_shift_is_trls_and_with_one_is_not() -> None:
    theirs = trl(config_of("bco_pair"))[0]
    assert ours(config_of("bco_pair", bco_shift="none"))[0] == pytest.approx(theirs, rel=1e-5)
    assert ours(config_of("bco_pair"), shift=0.5)[0] != pytest.approx(theirs, rel=1e-3)


def test_sft_is_trls_at_equal_lengths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("sft")
    assert ours(config)[0] != pytest.approx(trl(config)[0], rel=1e-3)
    monkeypatch.setattr(f"{__name__}.MASK", torch.arange(7) < torch.tensor([4, 3, 4, 2, 4, 4])[:, None])
    assert ours(config)[0] == pytest.approx(trl(config)[0], rel=1e-5)
