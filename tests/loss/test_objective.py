from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from boresight.advantage.group import AdvantageConfig
from boresight.errors import ConfigError
from boresight.loss.objective import OBJECTIVES, check_policy_loss, resolved_names
from boresight.loss.policy_config import PolicyLossConfig
from boresight.loss.preference_config import PreferenceLossConfig


@pytest.mark.parametrize(
    ("options", "resolved"),
    [
        ({}, ("dapo", "token")),
        ({"importance_sampling_level": "sequence"}, ("grpo", "sequence")),
        ({"importance_sampling_level": "sequence_token"}, ("grpo", "sequence_token")),
        ({"importance_sampling_level": "sequence_sum"}, ("rloo", "sequence_sum")),
        ({"loss_type": "luspo"}, ("luspo", "sequence")),
        ({"loss_type": "rloo"}, ("rloo", "sequence_sum")),
        ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, ("grpo", "sequence")),
    ],
)
def test_what_is_unset_follows_what_is_set(options: dict[str, Any], resolved: tuple[str, str]) -> None:
    assert resolved_names(PolicyLossConfig(**options)) == resolved


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"loss_type": "dapo", "importance_sampling_level": "sequence"}, "which means 'grpo' here"),
        ({"loss_type": "dr_grpo", "importance_sampling_level": "sequence"}, "weight each completion by its length"),
        ({"loss_type": "luspo", "importance_sampling_level": "token"}, "Set importance_sampling_level='sequence'"),
        ({"loss_type": "dap"}, "Did you mean 'dapo'"),
        ({"importance_sampling_level": "sequense"}, "Did you mean 'sequence'"),
        ({"loss_type": "cispo"}, "set epsilon_high=5.0"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "set epsilon_high=5.0"),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.1}, "epsilon has no effect with loss_type='cispo'"),
        ({"loss_type": "sapo", "epsilon_high": 0.3}, "epsilon_high has no effect"),
        ({"loss_type": "grpo", "gmpo_epsilon": 0.3}, "use one of gmpo"),
        ({"delta": 1.2}, "must be above 1 \\+ epsilon_high = 1.2: set delta=4.0"),
        ({"epsilon": -0.1}, "epsilon=-0.1 must not be negative"),
        ({"beta": -0.1}, "beta=-0.1 must not be negative"),
        ({"top_entropy_quantile": 1.2}, "between 0 and 1"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4' is not one of k1, k2, k3"),
        ({"vllm_importance_sampling_mode": "token_trunc"}, "Did you mean 'token_truncate'"),
        ({"vllm_importance_sampling_clip_min": 3.0}, "swap them"),
        ({"loss_type": "vespo", "vllm_importance_sampling_mode": "sequence_mask"}, "'token_truncate' or 'token_mask'"),
    ],
)
def test_a_contradiction_prints_its_fix(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        check_policy_loss(PolicyLossConfig(**options))


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_every_row_is_accepted_at_every_level_it_names(loss_type: str) -> None:
    epsilon_high = 5.0 if loss_type == "cispo" else None
    for level in (None, *OBJECTIVES[loss_type].levels):
        check_policy_loss(
            PolicyLossConfig(loss_type=loss_type, importance_sampling_level=level, epsilon_high=epsilon_high)
        )


def test_the_articles_gspo_is_accepted() -> None:
    check_policy_loss(
        PolicyLossConfig(
            importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4, beta=0.0, loss_type="grpo"
        )
    )


@dataclass
class Arguments(PolicyLossConfig, AdvantageConfig, TrainingArguments):
    """The options as a trainer's config inherits them."""


@dataclass
class PreferenceArguments(PreferenceLossConfig, TrainingArguments):
    """The same for preferences."""


def test_the_options_are_mixins_that_a_command_line_can_set() -> None:
    flags = "--output_dir out --loss_type sapo --epsilon_high 0.3 --reward_weights 1 0.5 --mask_truncated_completions"
    (parsed,) = HfArgumentParser([Arguments]).parse_args_into_dataclasses(flags.split())
    assert (parsed.loss_type, parsed.epsilon_high, parsed.reward_weights) == ("sapo", 0.3, [1.0, 0.5])
    assert parsed.mask_truncated_completions is True
    flags = "--output_dir out --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1 --bco_shift ema"
    (parsed,) = HfArgumentParser([PreferenceArguments]).parse_args_into_dataclasses(flags.split())
    assert (parsed.loss_type, parsed.loss_weights) == (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])


def test_defaults_are_trls_where_they_are_not_listed_as_deviations() -> None:
    from trl import DPOConfig, GRPOConfig

    deviations = {
        "loss_type": None,
        "importance_sampling_level": None,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        "gmpo_epsilon": 0.4,
        "kl_estimator": "k3",
        "advantage_baseline": "mean",
        "bco_shift": "running",
    }
    for ours, theirs in (
        (PolicyLossConfig, GRPOConfig),
        (AdvantageConfig, GRPOConfig),
        (PreferenceLossConfig, DPOConfig),
    ):
        known = {name: option.default for name, option in theirs.__dataclass_fields__.items()}
        for name, option in ours.__dataclass_fields__.items():
            factory = option.default_factory
            if (name in deviations and theirs is GRPOConfig) or name == "bco_shift":
                assert option.default == deviations[name], name
            elif callable(factory):
                assert factory() == theirs.__dataclass_fields__[name].default_factory()
            else:
                assert option.default == known[name], name
