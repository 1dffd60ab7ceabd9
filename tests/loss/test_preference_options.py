from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

from boresight.errors import ConfigError
from boresight.loss.objectives import PREFERENCES
from boresight.loss.preference_options import MPO, PreferenceLossOptions, check_preference_loss, is_coupled, reads_shift
from boresight.option_checks import check_options
from boresight.options import declarations


def checked(*names: str, **options: Any) -> None:
    config = PreferenceLossOptions(loss_type=list(names))
    for name, value in options.items():
        # Not at construction, where under pytest beartype reads a Literal before the check does.
        setattr(config, name, value)
    check_options(config)
    check_preference_loss(config)


@pytest.mark.parametrize(
    ("names", "options", "fix"),
    [
        (["sigmiod"], {}, "Did you mean 'sigmoid'"),
        (["sigmoid", "sft"], {"loss_weights": [1.0]}, "1 numbers for 2 losses"),
        (["sigmoid", "sigmoid"], {}, "each once"),
        (["bco_pair"], {"bco_shift": "mean"}, "is not one of 'running', 'ema', 'none'"),
        (["bco_pair"], {"bco_shift": "runing"}, "Did you mean 'running'"),
        (["sigmoid"], {"bco_shift": "none"}, "use one of bco_pair"),
        (["hinge"], {"label_smoothing": 0.1}, "label_smoothing has no effect"),
        (["sigmoid"], {"label_smoothing": 0.5}, "below 0.5"),
        (["exo_pair"], {}, "label_smoothing=1e-3"),
        (["bco_pair"], {"f_divergence_type": "forward_kl"}, "f_divergence_type has no effect"),
        (["sigmoid", "bco_pair"], {"f_divergence_type": "forward_kl"}, "not for bco_pair"),
        (["sigmoid"], {"f_divergence_type": "kl"}, "is not one of 'reverse_kl'"),
        (["sigmoid"], {"f_alpha_divergence_coef": 0.3}, "set f_divergence_type='alpha_divergence'"),
        (["sigmoid"], {"discopop_tau": 0.1}, "use one of discopop"),
        (["discopop"], {"discopop_tau": 0.0}, "discopop_tau=0.0: it must be above 0"),
        (["aot"], {"use_weighting": True}, "set use_weighting=False"),
        (["sigmoid"], {"ld_alpha": 1.5}, "ld_alpha=1.5: it must be at least 0 and at most 1"),
        (["sigmoid"], {"beta": 0.0}, "must be above 0"),
    ],
)
def test_a_contradiction_prints_its_fix(names: list[str], options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        checked(*names, **options)


def test_mpo_and_a_bare_name_are_accepted() -> None:
    checked(*MPO["loss_type"], loss_weights=MPO["loss_weights"])
    bare = PreferenceLossOptions()
    bare.loss_type = "ipo"  # pyright: ignore[reportAttributeAccessIssue]
    check_options(bare)
    check_preference_loss(bare)


@pytest.mark.parametrize("name", PREFERENCES)
def test_every_row_is_accepted(name: str) -> None:
    checked(name, label_smoothing=0.1 if name == "exo_pair" else 0.0)


def test_what_a_sum_needs_of_the_trainer() -> None:
    losses = {name: PreferenceLossOptions(loss_type=["sigmoid", name]) for name in PREFERENCES if name != "sigmoid"}
    assert [name for name, config in losses.items() if is_coupled(config)] == ["aot", "aot_unpaired"]
    assert [name for name, config in losses.items() if reads_shift(config)] == ["bco_pair"]


def test_the_choices_of_a_loss_are_the_rows() -> None:
    choices = {declared.name: declared.choices for declared in declarations(PreferenceLossOptions)}
    assert choices["loss_type"] == tuple(PREFERENCES)


@dataclass
class Arguments(PreferenceLossOptions, TrainingArguments):
    """The options as a trainer's config inherits them."""


def test_the_options_are_mixins_that_a_command_line_can_set() -> None:
    flags = "--output_dir out --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1 --bco_shift ema"
    (parsed,) = HfArgumentParser([Arguments]).parse_args_into_dataclasses(flags.split())
    assert (parsed.loss_type, parsed.loss_weights) == (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0])


def test_defaults_are_trls_where_they_are_not_listed_as_deviations() -> None:
    from trl import DPOConfig

    theirs = DPOConfig.__dataclass_fields__
    for option in fields(PreferenceLossOptions):
        if option.name == "bco_shift":
            assert option.default == "running"
        elif callable(option.default_factory):
            assert option.default_factory() == theirs[option.name].default_factory()
        else:
            assert option.default == theirs[option.name].default, option.name
