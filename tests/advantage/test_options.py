from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from boresight.advantage.options import AdvantageOptions, check_advantage
from boresight.errors import ConfigError
from boresight.option_checks import check_options


@dataclass
class Config(AdvantageOptions):
    """The options as a trainer's configuration inherits them."""


def checked(options: dict[str, Any]) -> None:
    config = AdvantageOptions()
    for name, value in options.items():
        # Not at construction, where under pytest beartype reads a Literal before the check does.
        setattr(config, name, value)
    check_options(config)
    check_advantage(config)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"scale_rewards": "grop"}, "Did you mean 'group'"),
        ({"advantage_baseline": "median"}, "is not one of 'mean', 'leave_one_out'"),
        ({"multi_objective_aggregation": "sum_then_normalise"}, "Did you mean 'sum_then_normalize'"),
        ({"advantage_baseline": "leave_one_out"}, "set scale_rewards='none'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"},
            "leave scale_rewards at 'group'",
        ),
        (
            {
                "multi_objective_aggregation": "normalize_then_sum",
                "scale_rewards": "group",
                "advantage_baseline": "leave_one_out",
            },
            "scale_rewards='none'",
        ),
    ],
)
def test_a_contradiction_prints_its_fix(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        checked(options)


@pytest.mark.parametrize(
    ("given", "meant"), [(True, "group"), (False, "none"), ("True", "group"), ("false", "none"), ("batch", "batch")]
)
def test_trls_booleans_are_read(given: Any, meant: str) -> None:
    config = Config(scale_rewards=given)
    check_options(config)
    check_advantage(config)
    assert config.scale_rewards == meant
