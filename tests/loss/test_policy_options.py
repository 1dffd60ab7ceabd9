from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from boresight.advantage.options import AdvantageOptions
from boresight.errors import ConfigError
from boresight.loss.objectives import OBJECTIVES
from boresight.loss.policy_options import PolicyLossOptions, check_policy_loss, resolved_names
from boresight.option_checks import check_options
from boresight.options import declarations


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
    assert resolved_names(PolicyLossOptions(**options)) == resolved


def checked(options: dict[str, Any]) -> None:
    config = PolicyLossOptions()
    for name, value in options.items():
        # Not at construction, where under pytest beartype reads a Literal before the check does.
        setattr(config, name, value)
    check_options(config)
    check_policy_loss(config)


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
        ({"delta": 0.9}, "delta=0.9: it must be above 1"),
        ({"epsilon": -0.1}, "epsilon=-0.1: it must be at least 0"),
        ({"epsilon": float("nan")}, "epsilon=nan: it must be at least 0"),
        ({"beta": -0.1}, "beta=-0.1: it must be at least 0"),
        ({"entropy_coef": -0.1}, "entropy_coef=-0.1: it must be at least 0"),
        ({"off_policy_mask_threshold": -0.1}, "off_policy_mask_threshold=-0.1: it must be at least 0"),
        ({"loss_type": "gmpo", "gmpo_epsilon": -0.1}, "gmpo_epsilon=-0.1: it must be at least 0"),
        ({"loss_type": "sapo", "sapo_temperature_neg": 0.0}, "sapo_temperature_neg=0.0: it must be above 0"),
        ({"top_entropy_quantile": 1.2}, "top_entropy_quantile=1.2: it must be at least 0 and at most 1"),
        ({"beta": 0.1, "kl_estimator": "k4"}, "kl_estimator='k4' is not one of 'k1', 'k2', 'k3'"),
        ({"kl_estimator": "k1"}, "kl_estimator='k1' has no effect: set beta above 0"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl=False has no effect: set beta above 0"),
        ({"vllm_importance_sampling_mode": "token_trunc"}, "Did you mean 'token_truncate'"),
        ({"vllm_importance_sampling_clip_min": 3.0}, "swap them"),
        (
            {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_clip_max": 3.0},
            "set vllm_importance_sampling_correction=True",
        ),
        ({"loss_type": "vespo", "vllm_importance_sampling_mode": "sequence_mask"}, "'token_truncate' or 'token_mask'"),
    ],
)
def test_a_contradiction_prints_its_fix(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        checked(options)


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_every_row_is_accepted_at_every_level_it_names(loss_type: str) -> None:
    epsilon_high = 5.0 if loss_type == "cispo" else None
    for level in (None, *OBJECTIVES[loss_type].levels):
        checked({"loss_type": loss_type, "importance_sampling_level": level, "epsilon_high": epsilon_high})


def test_the_articles_gspo_is_accepted() -> None:
    checked(
        {
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "beta": 0.0,
            "loss_type": "grpo",
        }
    )


def test_the_choices_of_a_loss_are_the_rows() -> None:
    choices = {declared.name: declared.choices for declared in declarations(PolicyLossOptions)}
    assert choices["loss_type"] == tuple(OBJECTIVES)


@dataclass
class Arguments(PolicyLossOptions, AdvantageOptions, TrainingArguments):
    """The options as a trainer's config inherits them."""


def test_the_options_are_mixins_that_a_command_line_can_set() -> None:
    flags = "--output_dir out --loss_type sapo --epsilon_high 0.3 --reward_weights 1 0.5 --mask_truncated_completions"
    flags += " --scale_rewards false"
    (parsed,) = HfArgumentParser([Arguments]).parse_args_into_dataclasses(flags.split())
    assert (parsed.loss_type, parsed.epsilon_high, parsed.reward_weights) == ("sapo", 0.3, [1.0, 0.5])
    assert parsed.mask_truncated_completions is True
    assert parsed.scale_rewards == "none"


def test_defaults_are_trls_where_they_are_not_listed_as_deviations() -> None:
    from trl import GRPOConfig

    deviations = {
        "loss_type": None,
        "importance_sampling_level": None,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 2.0,
        "gmpo_epsilon": 0.4,
        "kl_estimator": "k3",
        "advantage_baseline": "mean",
        "kl_in_reward": False,
        "reward_clip_range": None,
        "normalize_advantages": False,
    }
    known = {option.name: option.default for option in fields(GRPOConfig)}
    for options in (PolicyLossOptions, AdvantageOptions):
        for option in fields(options):
            assert option.default == (known | deviations)[option.name], option.name
