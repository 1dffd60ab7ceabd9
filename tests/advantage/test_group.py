from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boresight.advantage.group import (
    AdvantageConfig,
    advantage,
    check_advantage,
    combine_rewards,
    decoupled_advantage,
    group_advantage,
)
from boresight.errors import ConfigError, RewardError

NAN = float("nan")
# Group 0: 1, 4, 1 (mean 2, unbiased std √3). Group 1: 5, 9 (mean 7, std √8). Interleaved on purpose.
REWARDS = torch.tensor([1.0, 5.0, 4.0, 9.0, 1.0])
GROUP = torch.tensor([0, 1, 0, 1, 0])


def config_of(scale: str = "group", baseline: str = "mean") -> AdvantageConfig:
    return AdvantageConfig(scale_rewards=scale, advantage_baseline=baseline)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of("group"), [-0.5773169, -0.7070818, 1.1546339, 0.7070818, -0.5773169]),
        # std of 1, 5, 4, 9, 1 around 4 is √11
        (config_of("batch"), [-0.3015022, -0.6030045, 0.6030045, 0.6030045, -0.3015022]),
        (config_of("none"), [-1.0, -2.0, 2.0, 2.0, -1.0]),
        (config_of("none", "leave_one_out"), [-1.5, -4.0, 3.0, 4.0, -1.5]),
    ],
    ids=["group", "batch", "none", "leave_one_out"],
)
def test_closed_form(config: AdvantageConfig, expected: list[float]) -> None:
    result = group_advantage(REWARDS, GROUP, config)
    torch.testing.assert_close(result.values, torch.tensor(expected))
    torch.testing.assert_close(result.mean, torch.tensor([2.0, 7.0]))
    torch.testing.assert_close(result.std, torch.tensor([math.sqrt(3), math.sqrt(8)]))
    assert result.zero_spread.tolist() == [False, False]


@pytest.mark.parametrize("config", [config_of("group"), config_of("batch"), config_of("none", "leave_one_out")])
def test_unscored_completions_take_no_part(config: AdvantageConfig) -> None:
    rewards, group = torch.cat([REWARDS, torch.tensor([NAN, NAN])]), torch.cat([GROUP, torch.tensor([0, 1])])
    result = group_advantage(rewards, group, config)
    torch.testing.assert_close(result.values[:5], group_advantage(REWARDS, GROUP, config).values)
    assert result.values[5:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "config", [config_of("group"), config_of("batch"), config_of("none"), config_of("none", "leave_one_out")]
)
def test_a_group_without_spread_has_advantage_exactly_zero(config: AdvantageConfig) -> None:
    """Three times 0.1 has a float32 mean off by 1e-9, which 1e-4 would blow up."""
    rewards = torch.tensor([0.1, 0.1, 0.1, 3.0, NAN, NAN, 2.0, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    result = group_advantage(rewards, group, config)
    assert result.values[:6].tolist() == [0.0] * 6
    assert result.values[6] > 0 > result.values[7]
    assert result.zero_spread.tolist() == [True, True, True, False]
    assert result.mean[1] == 3.0
    assert result.mean[2].isnan()


def test_combined_rewards() -> None:
    table = torch.tensor([[1.0, 2.0], [NAN, 2.0], [NAN, NAN], [3.0, 4.0]])
    failed = torch.tensor([False, False, False, True])
    combined = combine_rewards(table, [0.5, 10.0], failed)
    torch.testing.assert_close(combined, torch.tensor([20.5, 20.0, NAN, NAN]), equal_nan=True)
    torch.testing.assert_close(combine_rewards(table, None)[[0, 3]], torch.tensor([3.0, 7.0]))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_reward_names_its_completion(value: float) -> None:
    with pytest.raises(RewardError, match=r"Completion 1: reward function 0 returned -?inf"):
        combine_rewards(torch.tensor([[1.0, 2.0], [value, 2.0]]), None)


def test_gdpo_closed_form() -> None:
    """Column 0 becomes ∓√½, column 1 (twice the weight) −1, 0, 1; then the sum is normalised over the batch."""
    table = torch.tensor([[0.0, 10.0], [NAN, 20.0], [5.0, 30.0]])
    result = decoupled_advantage(table, [1.0, 2.0], torch.zeros(3, dtype=torch.long))
    # std of [0, 5] is 3.5355339, of the column [10, 20, 30] 10
    low = -2.5 / (3.5355339 + 1e-4) - 2 * 10 / (10 + 1e-4)
    expected = torch.tensor([low, 0.0, -low]) / (-low + 1e-4)
    torch.testing.assert_close(result.values, expected)


def test_gdpo_is_exactly_zero_where_no_reward_has_spread() -> None:
    """The batch mean that is subtracted last is 0 but for rounding (3e-8 here), which must not reach the flat group."""
    table = torch.tensor(
        [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [1.0, 7.0], [4.0, 7.0], [9.3, 7.0], [NAN, NAN], [9.0, 9.0]]
    )
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    failed = torch.tensor([False] * 7 + [True])
    result = decoupled_advantage(table, None, group, failed)
    assert result.values[[0, 1, 2, 6, 7]].tolist() == [0.0] * 5
    assert result.values[3] < result.values[4] < 0 < result.values[5]
    assert result.zero_spread.tolist() == [True, False]


def test_gdpo_keeps_a_reward_of_small_spread_audible() -> None:
    table = torch.tensor([[0.0, 100.0], [0.01, 100.0], [0.0, 0.0], [0.01, 0.0]])
    group = torch.zeros(4, dtype=torch.long)
    summed, decoupled = (
        advantage(table, group, AdvantageConfig(multi_objective_aggregation=name)).values
        for name in ("sum_then_normalize", "normalize_then_sum")
    )
    assert (summed[1] - summed[0]).item() < 1e-3
    assert (decoupled[1] - decoupled[0]).item() > 0.5


CONFIGS = [
    config_of("group"),
    config_of("batch"),
    config_of("none"),
    config_of("none", "leave_one_out"),
    AdvantageConfig(multi_objective_aggregation="normalize_then_sum"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["group", "batch", "none", "leave_one_out", "gdpo"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_laws(config: AdvantageConfig, data: st.DataObject) -> None:
    """Sum to zero per group; a constant added to a group changes nothing (to all, for batch scaling); order changes nothing."""
    size = data.draw(st.integers(2, 12))
    cell = st.one_of(st.integers(-3, 3).map(float), st.just(NAN))
    table = torch.tensor([[data.draw(cell), data.draw(cell)] for _ in range(size)], dtype=torch.float64)
    group = torch.tensor([data.draw(st.integers(0, 2)) for _ in range(size)])
    failed = torch.tensor([data.draw(st.integers(0, 9)) == 0 for _ in range(size)])
    values = advantage(table, group, config, failed).values
    assert values.isfinite().all()
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, group, values)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-6)

    order = data.draw(st.permutations(range(size)))
    torch.testing.assert_close(advantage(table[order], group[order], config, failed[order]).values, values[order])

    everywhere_or_in_group_one = config.scale_rewards == "batch" or data.draw(st.booleans())
    moved = table + 2.0 * (torch.ones(size) if everywhere_or_in_group_one else (group == 1))[:, None]
    applicable = ~table.isnan().any(-1)  # a reward that does not apply gets no constant
    if applicable.all():
        torch.testing.assert_close(advantage(moved, group, config, failed).values, values, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"scale_rewards": "grop"}, "Did you mean 'group'"),
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
        ({"reward_weights": [1.0]}, "1 numbers for 2 reward functions"),
    ],
)
def test_a_contradiction_prints_its_fix(options: dict[str, Any], fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        check_advantage(AdvantageConfig(**options), num_rewards=2)


@pytest.mark.parametrize(("given", "meant"), [(True, "group"), (False, "none"), ("True", "group"), ("batch", "batch")])
def test_trls_booleans_are_read(given: Any, meant: str) -> None:
    config = AdvantageConfig()
    config.scale_rewards = given
    check_advantage(config)
    expected = group_advantage(REWARDS, GROUP, config_of(meant)).values
    assert group_advantage(REWARDS, GROUP, config).values.tolist() == expected.tolist()
