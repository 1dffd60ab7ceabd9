from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boresight.errors import ConfigError
from boresight.trainer.steps import StepBatches, StepPlan, StreamedBatches, micro_batches, smaller_budget
from boresight.types import Completion, Group, Prompt, Row


def group(prompt: int, *completions: int) -> Group:
    ids = torch.arange(prompt)
    row = Row(0, "", (), (), {})
    made = tuple(Completion(torch.arange(length), torch.ones(length, dtype=torch.bool), "") for length in completions)
    return Group(Prompt(row, ids, torch.zeros_like(ids), {}, ids), made)


@given(
    num_rows=st.integers(8, 60),
    groups=st.integers(1, 3),
    draw=st.integers(1, 2),
    iterations=st.integers(1, 2),
    world=st.integers(1, 2),
    epoch=st.integers(0, 2),
)
def test_ranks_share_every_row_once(
    num_rows: int, groups: int, draw: int, iterations: int, world: int, epoch: int
) -> None:
    plan = StepPlan(groups, 1, draw, iterations)
    if num_rows < groups * draw * world:
        return
    ranks = [StepBatches(num_rows, plan, shuffle=True, seed=5, rank=rank, world_size=world) for rank in range(world)]
    for rank in ranks:
        rank.set_epoch(epoch)
    steps = [list(rank) for rank in ranks]
    drawn = [row for rank in steps for step in rank for row in step]
    assert len(drawn) == len(set(drawn)) == num_rows - ranks[0].num_dropped
    assert {len(rank) for rank in steps} == {len(ranks[0])}
    fresh = [bool(step) for step in steps[0]]
    assert fresh == [place % plan.rollout_period == 0 for place in range(len(fresh))]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("plan", [StepPlan(2, 1), StepPlan(2, 1, 2, 2)])
def test_one_ahead_has_the_rows_of_the_next_rollout(plan: StepPlan, rank: int) -> None:
    """Over the end of an epoch too, and of a last step that is smaller (26 rows are 6 steps of 4 and one of 2)."""
    options = {"shuffle": True, "seed": 3, "rank": rank, "world_size": 2}
    now, ahead = StepBatches(26, plan, **options), StepBatches(26, plan, **options, ahead=True)
    steps: list[tuple[list[int], list[int]]] = []
    for epoch in range(3):
        now.set_epoch(epoch)
        ahead.set_epoch(epoch)
        assert len(list(now)) == len(list(ahead)) == len(ahead)
        steps += zip(now, ahead, strict=True)
    begins = [step for step, (rows, _) in enumerate(steps) if rows]
    assert begins == [step for step, (_, following) in enumerate(steps) if following]
    for step, following in pairwise(begins):
        assert steps[step][1] == steps[following][0]
    for step in begins:
        assert ahead.rollout_at(step) == steps[step][0]
    assert len({*map(len, (rows for rows, _ in steps))}) == 2  # the smaller step, or the steps without rows


def test_two_ranks_draw_what_one_would() -> None:
    """Step by step, the union over ranks is what a single rank with twice the groups learns from."""
    one = list(StepBatches(24, StepPlan(4, 1, 2), shuffle=True, seed=1))
    two = [list(StepBatches(24, StepPlan(2, 1, 2), shuffle=True, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    for draw in range(0, len(one), 2):
        for step in range(2):
            alone = one[draw][4 * step : 4 * step + 4]
            assert alone == [row for rank in two for row in rank[draw][2 * step : 2 * step + 2]]


def test_epochs_differ_and_repeat() -> None:
    batches = StepBatches(12, StepPlan(3, 1), shuffle=True, seed=0)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    batches.set_epoch(0)
    assert first == list(batches) != second


def test_last_step_is_kept_where_every_rank_has_a_group() -> None:
    assert [len(step) for step in StepBatches(11, StepPlan(4, 1), shuffle=False, seed=0)] == [4, 4, 3]
    # One row is fewer than two ranks, so it joins the step before.
    ranks = [list(StepBatches(9, StepPlan(4, 1), shuffle=False, seed=0, rank=rank, world_size=2)) for rank in range(2)]
    assert ranks == [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8]]]
    assert StepBatches(11, StepPlan(4, 1), shuffle=False, seed=0, keep_last=False).num_dropped == 3


def test_too_few_rows() -> None:
    with pytest.raises(ConfigError, match="has 3 rows, but one rollout takes 8"):
        StepBatches(3, StepPlan(4, 1, 2), shuffle=False, seed=0)


def test_stream_gives_each_rank_the_steps_of_the_indexed_order() -> None:
    plan = StepPlan(2, 1, 2, 2)
    streams = [list(StreamedBatches(range(19), plan, rank=rank, world_size=2)) for rank in range(2)]
    indexed = [list(StepBatches(19, plan, shuffle=False, seed=0, rank=rank, world_size=2)) for rank in range(2)]
    assert streams == indexed


def test_micro_batches_by_groups() -> None:
    groups = [group(5, 2, 3) for _ in range(5)]
    assert [len(part) for part in micro_batches(groups, StepPlan(5, 2))] == [2, 2, 1]


def test_micro_batches_by_tokens() -> None:
    """10, 7, 12 and 30 tokens in passes of 20: the last group's branches are run apart, over its prompt again."""
    groups = [group(5, 2, 3), group(4, 3), group(8, 4), group(6, 9, 5, 4, 6)]
    passes = micro_batches(groups, StepPlan(4, 1), max_tokens=20)
    assert [[item.num_tokens for item in part] for part in passes] == [[10, 7], [12], [20], [16]]
    assert sum(len(item) for part in passes for item in part) == sum(map(len, groups))


def test_a_single_branch_is_never_cut() -> None:
    assert [
        [item.num_tokens for item in part] for part in micro_batches([group(6, 9)], StepPlan(1, 1), max_tokens=10)
    ] == [[15]]


def test_the_next_budget_is_half_of_the_largest_pass() -> None:
    passes = [[group(5, 2, 3)], [group(4, 3), group(8, 4, 5)]]
    assert smaller_budget(passes) == (7 + 17) // 2
    assert smaller_budget([[group(6, 9)], [group(2, 1)]]) is None
    assert smaller_budget([[group(6, 9)], [group(2, 1), group(9, 2)]]) == 7
