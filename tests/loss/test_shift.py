from __future__ import annotations

import pytest

from boresight.errors import ConfigError
from boresight.loss.preference_options import ShiftMode
from boresight.loss.shift import RewardShift

STEPS = [(3.0, 2.0), (-1.0, 4.0), (10.0, 1.0)]


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("running", [1.5, 2 / 6, 12 / 7]),
        ("ema", [0.015, 0.99 * 0.015 + 0.01 * -0.25, 0.99 * (0.99 * 0.015 - 0.0025) + 0.1]),
        ("none", [0.0, 0.0, 0.0]),
    ],
)
def test_each_step_sees_the_mean_of_those_before(mode: ShiftMode, values: list[float]) -> None:
    shift = RewardShift(mode)
    assert shift.value == 0.0
    for (reward_sum, num_pairs), value in zip(STEPS, values, strict=True):
        shift.update(reward_sum, num_pairs)
        assert shift.value == pytest.approx(value)


@pytest.mark.parametrize("mode", ["running", "ema"])
def test_a_resumed_run_continues_exactly(mode: ShiftMode) -> None:
    whole, first = RewardShift(mode), RewardShift(mode)
    for step in STEPS:
        whole.update(*step)
    first.update(*STEPS[0])
    second = RewardShift(mode)
    second.load_state_dict(first.state_dict())
    for step in STEPS[1:]:
        second.update(*step)
    assert second.value == whole.value


def test_a_step_without_pairs_changes_nothing() -> None:
    shift = RewardShift()
    shift.update(3.0, 2.0)
    shift.update(0.0, 0.0)
    assert shift.value == 1.5


def test_another_mode_than_the_checkpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match="set bco_shift='running'"):
        RewardShift("none").load_state_dict(RewardShift("running").state_dict())
