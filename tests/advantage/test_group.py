from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from boresight.advantage.group import Comparison, advantage, combine_rewards, compared
from boresight.advantage.options import AdvantageOptions
from boresight.errors import ConfigError, RewardError

NAN = float("nan")
# Group 0: 1, 4, 1 (mean 2, unbiased std √3). Group 1: 5, 9 (mean 7, std √8). Interleaved on purpose.
REWARDS = torch.tensor([1.0, 5.0, 4.0, 9.0, 1.0])
GROUP = torch.tensor([0, 1, 0, 1, 0])


def config_of(scale: str = "group", baseline: str = "mean") -> AdvantageOptions:
    options = AdvantageOptions(scale_rewards=scale)
    options.advantage_baseline = baseline  # pyright: ignore[reportAttributeAccessIssue]
    return options


GDPO = AdvantageOptions(multi_objective_aggregation="normalize_then_sum")


def of_one_reward(rewards: Tensor, group: Tensor, config: AdvantageOptions) -> tuple[Tensor, Comparison]:
    found = compared(rewards[:, None], group, config)
    return advantage(found, config), found


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
def test_closed_form(config: AdvantageOptions, expected: list[float]) -> None:
    values, found = of_one_reward(REWARDS, GROUP, config)
    torch.testing.assert_close(values, torch.tensor(expected))
    torch.testing.assert_close(found.reward, REWARDS)
    torch.testing.assert_close(found.mean, torch.tensor([2.0, 7.0]))
    torch.testing.assert_close(found.std, torch.tensor([math.sqrt(3), math.sqrt(8)]))
    assert found.zero_spread.tolist() == [False, False]


@pytest.mark.parametrize("config", [config_of("group"), config_of("batch"), config_of("none", "leave_one_out")])
def test_unscored_completions_take_no_part(config: AdvantageOptions) -> None:
    rewards, group = torch.cat([REWARDS, torch.tensor([NAN, NAN])]), torch.cat([GROUP, torch.tensor([0, 1])])
    values, found = of_one_reward(rewards, group, config)
    torch.testing.assert_close(values[:5], of_one_reward(REWARDS, GROUP, config)[0])
    assert values[5:].tolist() == [0.0, 0.0]
    assert found.reward[5:].isnan().all()


@pytest.mark.parametrize(
    "config", [config_of("group"), config_of("batch"), config_of("none"), config_of("none", "leave_one_out")]
)
def test_a_group_without_spread_has_advantage_exactly_zero(config: AdvantageOptions) -> None:
    """Three times 0.1 has a float32 mean off by 1e-9, which 1e-4 would blow up."""
    rewards = torch.tensor([0.1, 0.1, 0.1, 3.0, NAN, NAN, 2.0, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    values, found = of_one_reward(rewards, group, config)
    assert values[:6].tolist() == [0.0] * 6
    assert values[6] > 0 > values[7]
    assert found.zero_spread.tolist() == [True, True, True, False]
    assert found.mean[1] == 3.0
    assert found.mean[2].isnan()


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
    config = AdvantageOptions(multi_objective_aggregation="normalize_then_sum", reward_weights=[1.0, 2.0])
    values = advantage(compared(table, torch.zeros(3, dtype=torch.long), config), config)
    # std of [0, 5] is 3.5355339, of the column [10, 20, 30] 10
    low = -2.5 / (3.5355339 + 1e-4) - 2 * 10 / (10 + 1e-4)
    expected = torch.tensor([low, 0.0, -low]) / (-low + 1e-4)
    torch.testing.assert_close(values, expected)


def test_gdpo_is_exactly_zero_where_no_reward_has_spread() -> None:
    """The batch mean that is subtracted last is 0 but for rounding (3e-8 here), which must not reach the flat group."""
    table = torch.tensor(
        [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2], [1.0, 7.0], [4.0, 7.0], [9.3, 7.0], [NAN, NAN], [9.0, 9.0]]
    )
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    failed = torch.tensor([False] * 7 + [True])
    found = compared(table, group, GDPO, failed)
    values = advantage(found, GDPO)
    assert values[[0, 1, 2, 6, 7]].tolist() == [0.0] * 5
    assert values[3] < values[4] < 0 < values[5]
    assert found.zero_spread.tolist() == [True, False]


def test_gdpo_keeps_a_reward_of_small_spread_audible() -> None:
    table = torch.tensor([[0.0, 100.0], [0.01, 100.0], [0.0, 0.0], [0.01, 0.0]])
    group = torch.zeros(4, dtype=torch.long)
    summed, decoupled = (advantage(compared(table, group, config), config) for config in (AdvantageOptions(), GDPO))
    assert (summed[1] - summed[0]).item() < 1e-3
    assert (decoupled[1] - decoupled[0]).item() > 0.5


CONFIGS = [
    config_of("group"),
    config_of("batch"),
    config_of("none"),
    config_of("none", "leave_one_out"),
    GDPO,
]


@pytest.mark.parametrize("config", CONFIGS, ids=["group", "batch", "none", "leave_one_out", "gdpo"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_laws(config: AdvantageOptions, data: st.DataObject) -> None:
    """Sum to zero per group; a constant added to a group changes nothing (to all, for batch scaling); order changes nothing."""
    size = data.draw(st.integers(2, 12))
    cell = st.one_of(st.integers(-3, 3).map(float), st.just(NAN))
    table = torch.tensor([[data.draw(cell), data.draw(cell)] for _ in range(size)], dtype=torch.float64)
    group = torch.tensor([data.draw(st.integers(0, 2)) for _ in range(size)])
    failed = torch.tensor([data.draw(st.integers(0, 9)) == 0 for _ in range(size)])
    found = compared(table, group, config, failed)
    values = advantage(found, config)
    assert values.isfinite().all()
    sums = torch.zeros(3, dtype=torch.float64).index_add(0, group, values)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-6)

    order = data.draw(st.permutations(range(size)))
    reordered = advantage(compared(table[order], group[order], config, failed[order]), config)
    torch.testing.assert_close(reordered, values[order])

    everywhere_or_in_group_one = config.scale_rewards == "batch" or data.draw(st.booleans())
    moved = table + 2.0 * (torch.ones(size) if everywhere_or_in_group_one else (group == 1))[:, None]
    applicable = ~table.isnan().any(-1)  # a reward that does not apply gets no constant
    if applicable.all():
        found = compared(moved, group, config, failed)
        torch.testing.assert_close(advantage(found, config), values, rtol=1e-6, atol=1e-8)


def random_groups(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Six groups of four with two rewards, some of them missing; group 2 has no spread."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randint(-2, 3, (24, 2), generator=random).float()
    table[torch.rand(24, 2, generator=random) < 0.15] = NAN
    table[8:12] = 1.0
    return table, torch.arange(6).repeat_interleave(4), torch.rand(24, generator=random) < 0.1


def assert_equal(one: Comparison, other: Comparison) -> None:
    for name in Comparison.__dataclass_fields__:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("config", CONFIGS, ids=["group", "batch", "none", "leave_one_out", "gdpo"])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_compared_whatever_the_others_are(config: AdvantageOptions, seed: int) -> None:
    """So it is done once, as groups are sampled, and some of them are taken to learn from."""
    table, group, failed = random_groups(seed)
    whole = compared(table, group, config, failed)
    assert whole.zero_spread[2]
    assert not whole.zero_spread.all()
    rounds = compared(table[:8], group[:8], config, failed[:8]) + compared(table[8:], group[8:] - 2, config, failed[8:])
    assert_equal(rounds, whole)
    chosen = [4, 0, 5]
    places = torch.cat([torch.arange(4 * number, 4 * number + 4) for number in chosen])
    alone = compared(table[places], torch.arange(3).repeat_interleave(4), config, failed[places])
    assert_equal(whole.of(chosen), alone)


def test_groups_are_taken_whose_completions_are_no_neighbours() -> None:
    found = compared(REWARDS[:, None], GROUP, config_of("none")).of([1, 0])
    assert found.group.tolist() == [0, 0, 1, 1, 1]
    assert found.reward.tolist() == [5.0, 9.0, 1.0, 4.0, 1.0]
    assert found.relative.tolist() == [-2.0, 2.0, -1.0, 2.0, -1.0]
    assert found.mean.tolist() == [7.0, 2.0]


def test_weights_that_do_not_fit_are_refused() -> None:
    config = AdvantageOptions(reward_weights=[1.0])
    with pytest.raises(ConfigError, match="1 numbers for 2 reward functions"):
        compared(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), config)


def test_a_penalty_is_subtracted_after_clipping_and_is_no_reward() -> None:
    """Rewards 1, 5, 9 clipped to [2, 6] are 2, 5, 6; minus 1, 0, 2 they are 1, 5, 4."""
    config = AdvantageOptions(scale_rewards="none", advantage_baseline="leave_one_out", reward_clip_range=[2.0, 6.0])
    found = compared(
        torch.tensor([[1.0], [5.0], [9.0]]),
        torch.zeros(3, dtype=torch.int64),
        config,
        penalty=torch.tensor([1.0, 0.0, 2.0]),
    )
    torch.testing.assert_close(advantage(found, config), torch.tensor([-3.5, 2.5, 1.0]))
    torch.testing.assert_close(found.reward, torch.tensor([1.0, 5.0, 9.0]))


def test_normalised_advantages() -> None:
    """Leave-one-out advantages −1.5, −4, 3, 4, −1.5 have mean 0 and unbiased std √11.375."""
    config = AdvantageOptions(scale_rewards="none", advantage_baseline="leave_one_out", normalize_advantages=True)
    values, _ = of_one_reward(REWARDS, GROUP, config)
    torch.testing.assert_close(values, torch.tensor([-1.5, -4.0, 3.0, 4.0, -1.5]) / (math.sqrt(11.375) + 1e-4))
