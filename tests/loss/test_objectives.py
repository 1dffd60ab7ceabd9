from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch

from boresight.errors import ConfigError
from boresight.loss import diagnostics, preference_terms, surrogate
from boresight.loss.aggregate import AGGREGATES
from boresight.loss.correction import CORRECTIONS
from boresight.loss.divergence import DIVERGENCES
from boresight.loss.objectives import OBJECTIVES, PREFERENCES, Level, Objective, Preference, function_of
from boresight.loss.policy import LogProbs, policy_loss, policy_objective, policy_total
from boresight.loss.policy_options import CorrectionMode, KLEstimator, PolicyLossOptions, check_policy_loss
from boresight.loss.preference import preference_loss, preference_total
from boresight.loss.preference_options import PreferenceLossOptions, check_preference_loss
from boresight.loss.preference_terms import Pairs
from boresight.loss.ratio import RATIOS
from boresight.loss.surrogate import Terms
from boresight.option_checks import check_options
from boresight.types import PerToken

MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]])
RATIO = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.0, 1.0]])
ADVANTAGE = torch.tensor([2.0, -1.0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_names_functions_that_are_there(name: str) -> None:
    row = OBJECTIVES[name]
    assert function_of(row.surrogate, surrogate).__module__ == surrogate.__name__
    assert row.diagnostics is None or function_of(row.diagnostics, diagnostics).__module__ == diagnostics.__name__
    assert row.aggregate in AGGREGATES
    assert row.reads <= {option.name for option in fields(PolicyLossOptions)}
    assert re.search(r"arXiv \d{4}\.\d{5}", row.source)


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_preference_names_a_function_that_is_there(name: str) -> None:
    row = PREFERENCES[name]
    assert function_of(row.term, preference_terms).__module__ == preference_terms.__name__
    assert row.reads <= {option.name for option in fields(PreferenceLossOptions)}
    assert re.search(r"arXiv \d{4}\.\d{5}", row.source)


def test_choices_are_the_keys_of_the_tables_that_compute_them() -> None:
    assert get_args(Level) == ("token", "sequence", "sequence_token", "sequence_sum")
    assert set(get_args(Level)) == RATIOS.keys()
    assert get_args(KLEstimator) == tuple(DIVERGENCES)
    assert get_args(CorrectionMode) == tuple(CORRECTIONS)


def test_an_unknown_function_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Objective("cliped", "token_mean", ("token",), frozenset(), "a slip")
    monkeypatch.setitem(OBJECTIVES, "slip", row)
    with pytest.raises(ConfigError, match=r"surrogate has no function 'cliped'.* Did you mean 'clipped'"):
        policy_objective(PolicyLossOptions(loss_type="slip"))
    monkeypatch.setitem(OBJECTIVES, "slip", Objective("clipped", "token_men", ("token",), frozenset(), "a slip"))
    with pytest.raises(ConfigError, match=r"aggregate='token_men' is not one of .* Did you mean 'token_mean'"):
        policy_objective(PolicyLossOptions(loss_type="slip"))
    with pytest.raises(ConfigError, match=r"preference_terms has no function 'higne'.* Did you mean 'hinge'"):
        function_of("higne", preference_terms)


def test_the_rows_and_the_options_are_read_without_torch() -> None:
    modules = "boresight.loss.policy_options, boresight.loss.preference_options, boresight.advantage.options"
    code = f"import sys, {modules}; print([name for name in ('torch', 'jaxtyping', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- Next month's paper: one function and one row -------------------------------------------------------------------------------


def capped(terms: Terms, config: PolicyLossOptions) -> PerToken:
    """−min(r, 1 + ε) A."""
    return -terms.log_ratio.exp().clamp(max=1 + config.epsilon) * terms.advantage[:, None]


@pytest.fixture(params=["by name", "itself"])
def new_objective(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The function in its file, or held by the row."""
    monkeypatch.setattr(surrogate, "capped", capped, raising=False)
    function = "capped" if request.param == "by name" else capped
    row = Objective(function, aggregate="token_mean", levels=("token",), reads=frozenset({"epsilon"}), source="ours")
    monkeypatch.setitem(OBJECTIVES, "new", row)
    return "new"


def test_a_new_objective_is_one_function_and_one_row(new_objective: str) -> None:
    config = PolicyLossOptions(loss_type=new_objective, epsilon=0.3)
    check_options(config)
    check_policy_loss(config)
    total = policy_total(config, MASK, 10)
    loss = policy_loss(config, LogProbs(OLD + RATIO.log(), OLD), ADVANTAGE, MASK, total).loss
    assert loss.item() == pytest.approx((-2.6 - 1.0 - 2.2 + 0.5) / 4)
    policy = OLD.clone().requires_grad_()
    policy_loss(config, LogProbs(policy, OLD), ADVANTAGE, MASK, total).loss.backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, -ADVANTAGE[:, None] * MASK / 4)


def test_what_a_new_objective_does_not_read_is_refused(new_objective: str) -> None:
    with pytest.raises(
        ConfigError, match="epsilon_high has no effect with loss_type='new': unset it, or use one of grpo"
    ):
        check_policy_loss(PolicyLossOptions(loss_type=new_objective, epsilon_high=0.3))
    with pytest.raises(
        ConfigError, match=r"epsilon has no effect with loss_type='sapo': unset it, or use one of .*, new"
    ):
        check_policy_loss(PolicyLossOptions(loss_type="sapo", epsilon=0.3))
    with pytest.raises(ConfigError, match="Set importance_sampling_level='token'"):
        check_policy_loss(PolicyLossOptions(loss_type=new_objective, importance_sampling_level="sequence"))


def test_a_trainers_configuration_takes_a_new_objective(new_objective: str, tmp_path: Any) -> None:
    from boresight import GRPOConfig

    options: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "epsilon": 0.3}
    assert GRPOConfig(loss_type=new_objective, **options).loss_type == "new"
    with pytest.raises(ConfigError, match=r"loss_type='nw' is not one of .*'new'\. Did you mean 'new'"):
        GRPOConfig(loss_type="nw", **options)


def exponential(pairs: Pairs, config: PreferenceLossOptions) -> torch.Tensor:
    """e^{−h} + δ."""
    return (-config.beta * pairs.margin).exp() + pairs.shift


@pytest.mark.parametrize("is_named", [True, False])
def test_a_new_preference_is_one_function_and_one_row(is_named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference_terms, "exponential", exponential, raising=False)
    row = Preference("exponential" if is_named else exponential, frozenset({"bco_shift"}), "ours")
    monkeypatch.setitem(PREFERENCES, "new", row)
    config = PreferenceLossOptions(loss_type=["new", "hinge"], loss_weights=[2.0, 0.5], beta=0.5, bco_shift="ema")
    check_options(config)
    check_preference_loss(config)
    policy = torch.tensor([[-1.0, -2.0], [-0.5, 7.0]], requires_grad=True)
    mask, reference = torch.tensor([[True, True], [True, False]]), torch.tensor([-3.4, 0.3])
    # Log ratios 0.4 and −0.8: h = 0.6.
    result = preference_loss(config, policy, reference, mask, preference_total(mask), shift=0.1)
    assert result.loss.item() == pytest.approx(2 * (0.5488116 + 0.1) + 0.5 * 0.4)
    assert result.metrics["loss/new"][0].item() == pytest.approx(0.6488116)
    assert result.metrics["loss/bco_shift"][0].item() == pytest.approx(0.1)
    result.loss.backward()
    slope = -0.5 * (2 * 0.5488116 + 0.5)
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, torch.tensor([[slope, slope], [-slope, 0.0]]))
    with pytest.raises(ConfigError, match="label_smoothing has no effect with loss_type='new', 'hinge'"):
        check_preference_loss(PreferenceLossOptions(loss_type=["new", "hinge"], label_smoothing=0.1))
