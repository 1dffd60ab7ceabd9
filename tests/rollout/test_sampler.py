from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
import trl

from boresight.errors import ConfigError
from boresight.option_checks import check_options
from boresight.rollout.options import SamplingOptions
from boresight.rollout.sampler import sampling_settings
from boresight.sampling import SamplingSettings


def test_defaults_ask_for_trls() -> None:
    assert sampling_settings(SamplingOptions()) == SamplingSettings(8, 512, 1.0, 1.0, 0, None, 1.0, None)


def test_names_and_defaults_are_trls() -> None:
    theirs = {field.name: field.default for field in fields(trl.GRPOConfig)}
    for field in fields(SamplingOptions):
        assert field.default is not MISSING
        assert theirs[field.name] == field.default, field.name
        assert field.metadata["help"].strip().endswith(".")


def test_every_option_reaches_the_settings() -> None:
    config = SamplingOptions(
        num_generations=6,
        num_generations_eval=2,
        max_completion_length=33,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.02,
        repetition_penalty=1.1,
    )
    assert sampling_settings(config, seed=5) == SamplingSettings(6, 33, 0.7, 0.9, 40, 0.02, 1.1, 5)
    assert sampling_settings(config, evaluating=True).num_completions == 2


def test_evaluation_takes_the_trainings_number_where_it_has_none() -> None:
    assert sampling_settings(SamplingOptions(num_generations=6), evaluating=True).num_completions == 6


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_generations", 0),
        ("max_completion_length", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{option}="):
        check_options(SamplingOptions(**{option: value}))  # pyright: ignore[reportArgumentType]


def test_the_evaluations_number_is_named_when_it_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"^num_generations_eval=0"):
        check_options(SamplingOptions(num_generations_eval=0))
