from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boresight import GRPOConfig
from boresight.advantage.options import AdvantageOptions
from boresight.errors import ConfigError
from boresight.report import read_completions
from boresight.rewards import RewardTable
from boresight.trainer.rollouts.dynamic_sampling import Resampled, further_rows, resample
from boresight.trainer.rollouts.rollout import Rollout, exchanged, shares, step_order
from boresight.types import Completion, Group, Prompt, Row
from tests.trainer.conftest import Gradients, Run, furthest, vowel_share, weights
from tests.trainer.test_resume import same

# ---- Which groups are kept: arithmetic on rewards alone -------------------------------------------------------------------------


def has_spread(row: int) -> bool:
    return row % 3 != 0


def drawn(rows: Sequence[Sequence[int]], rank: int = 0) -> Rollout:
    """What each rank's rows scored, as one rank sees it."""
    scores = [
        [
            (
                torch.tensor([[0.5], [row + 1.0 if has_spread(row) else 0.5], [0.5]]),
                torch.zeros(3, dtype=torch.bool),
                torch.zeros(3),
            )
            for row in own
        ]
        for own in rows
    ]
    values = torch.cat([torch.zeros(0, 1), *(value for value, *_ in scores[rank])])
    table = RewardTable(("some",), values, torch.zeros(len(values), dtype=torch.bool), torch.ones(1))
    ids = torch.arange(2)
    one = Completion(ids, ids.bool(), "")
    groups = [Group(Prompt(Row(row, "", (), (), {}), ids, ids, {}, ids), (one,) * 3) for row in rows[rank]]
    return Rollout.gathered(groups, table, scores, AdvantageOptions())


def resampled(
    first: Sequence[Sequence[int]], further: Sequence[int], *, num_steps: int = 1, max_rounds: int = 9
) -> tuple[Resampled, list[int], list[list[list[int]]]]:
    """What was found, the rows that are kept, and what was asked for."""
    asked: list[list[list[int]]] = []
    sampled = [list(own) for own in first]

    def sample(rows: Sequence[Sequence[int]]) -> Rollout:
        asked.append([list(own) for own in rows])
        for own, more in zip(sampled, rows, strict=True):
            own += more
        return drawn(rows)

    found = resample(drawn(first), sample, iter(further), num_steps=num_steps, max_rounds=max_rounds)
    return found, [sampled[rank][place] for rank, place in found.kept], asked


def test_enough_spread_samples_nothing_more() -> None:
    found, rows, asked = resampled([[1, 2, 4]], [5])
    assert (rows, asked, found.num_rounds, found.num_flat) == ([1, 2, 4], [], 1, 0)


def test_as_many_as_are_missing_are_sampled_until_none_is() -> None:
    found, rows, asked = resampled([[3, 1, 6, 9, 2]], [12, 7, 15, 8, 18, 10, 11])
    assert asked == [[[12, 7, 15]], [[8, 18]], [[10]]]
    assert rows == [1, 2, 7, 8, 10]
    assert (found.num_rounds, found.num_flat, len(found.rollout.groups)) == (4, 0, 11)


def test_at_the_limit_the_first_without_spread_stay() -> None:
    found, rows, asked = resampled([[3, 1, 6, 9, 2]], [12, 7, 15, 8, 18, 10, 11], max_rounds=2)
    assert asked == [[[12, 7, 15]]]
    assert rows == [1, 2, 7, 3, 6]
    assert (found.num_rounds, found.num_flat) == (2, 2)
    assert "after 2 rounds and 8 groups, 2 of the 5 groups" in found.shortage


def test_where_the_rows_end_so_does_the_search() -> None:
    found, rows, _ = resampled([[3, 6]], [9, 4])
    assert (rows, found.num_rounds, found.num_flat) == ([4, 3], 2, 1)
    found, rows, _ = resampled([[3, 6]], [])
    assert (rows, found.num_rounds, found.num_flat) == ([3, 6], 1, 2)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=12, max_size=12, unique=True),
    st.lists(st.integers(31, 60), max_size=20, unique=True),
    st.sampled_from([1, 2, 3]),
    st.integers(2, 5),
)
def test_what_is_kept_does_not_depend_on_the_ranks(
    first: list[int], further: list[int], num_steps: int, max_rounds: int
) -> None:
    """One rank, two and four: the same rows are kept for the same steps, and every rank samples alike."""
    per_step = len(first) // num_steps
    alone, rows, _ = resampled([first], further, num_steps=num_steps, max_rounds=max_rounds)
    for world in (2, 4):
        if per_step % world:
            continue
        size = per_step // world
        dealt = [
            [row for step in range(num_steps) for row in first[step * per_step + rank * size :][:size]]
            for rank in range(world)
        ]
        found, theirs, asked = resampled(dealt, further, num_steps=num_steps, max_rounds=max_rounds)
        assert theirs == rows
        assert (found.num_rounds, found.num_flat) == (alone.num_rounds, alone.num_flat)
        assert all(len({len(own) for own in round_}) == 1 for round_ in asked)
        taken = shares(found.kept, [size] * world, num_steps)
        assert step_order(taken, num_steps) == found.kept


def test_further_rows_are_the_others_each_once() -> None:
    rows = list(further_rows(20, {3, 4, 19}, 7))
    assert sorted(rows) == [row for row in range(20) if row not in {3, 4, 19}]
    assert rows == list(further_rows(20, {3, 4, 19}, 7))
    assert rows != list(further_rows(20, {3, 4, 19}, 8))
    # Seeds that differ in their upper half alone, as those of draws do between two runs.
    assert list(further_rows(20, set(), 1 << 32)) != list(further_rows(20, set(), 2 << 32))


def test_groups_stay_where_they_are_on_one_rank() -> None:
    groups = drawn([[1, 2, 4]]).groups
    kept = exchanged(groups, [[(0, 2), (0, 0)]], 0, lambda row: pytest.fail(f"row {row} is here already"))
    assert [group.prompt.row.index for group in kept] == [4, 1]


def test_options_that_cannot_be_meant() -> None:
    with pytest.raises(ConfigError, match="max_sampling_rounds=3 has no effect: set dynamic_sampling=True"):
        GRPOConfig(max_sampling_rounds=3)
    with pytest.raises(ConfigError, match="max_sampling_rounds=1: it must be at least 2"):
        GRPOConfig(dynamic_sampling=True, max_sampling_rounds=1)


# ---- In training ----------------------------------------------------------------------------------------------------------------


def flat_where_a_word_is_asked_for(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Equal rewards in about a third of the groups: those whose answer is yes or no."""
    shades = vowel_share(completions)
    return [0.25 if gold in ("yes", "no") else shade for gold, shade in zip(solution, shades, strict=True)]


OPTIONS: dict[str, Any] = {
    "dynamic_sampling": True,
    "reward_funcs": flat_where_a_word_is_asked_for,
    "per_device_train_batch_size": 12,
    "steps_per_generation": 2,
    "max_steps": 4,
}


def test_only_groups_with_spread_are_learned_from(grpo: Run) -> None:
    trainer = grpo(**OPTIONS)
    trainer.train()
    assert len(trainer.experience) == 6
    assert not any(item.is_flat for item in trainer.experience)
    logs = [log for log in trainer.state.log_history if "rollout/num_rounds" in log]
    assert [log["step"] for log in logs] == [1, 3]
    sampled = sum(log["rollout/num_groups_sampled"] for log in logs)
    assert sum(log["rollout/num_groups_thrown_away"] for log in logs) == sampled - 12 > 0
    assert all(log["rollout/num_groups_without_spread"] == 0 for log in logs)
    assert all(log["frac_reward_zero_std"] > 0 for log in logs)

    rows = read_completions(trainer.args.output_dir).to_pylist()
    assert len(rows) == 4 * sampled
    for step in (1, 3):
        kept = [row for row in rows if row["step"] == step and row["kept"]]
        others = [row for row in rows if row["step"] == step and not row["kept"]]
        assert len(kept) == 24 and len({row["row"] for row in kept}) == 6
        assert not {row["row"] for row in kept} & {row["row"] for row in others}
        assert all(row["advantage"] is None and row["reward"] == 0.25 for row in others)
    last = [row["advantage"] for row in rows if row["step"] == 3 and row["kept"]]
    assert sorted(last) == sorted(torch.cat([item.advantage for item in trainer.experience]).tolist())


def test_resumes_with_equal_bits(grpo: Run, tmp_path: Path) -> None:
    """Between two draws, and within one whose groups came from further rows."""
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 4}
    whole = grpo(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    # The files of a whole run are those of one that was cut at any step.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (3, 2):
        resumed = grpo(output_dir=str(tmp_path / "cut"), **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
        assert same(weights(whole), weights(resumed))
        kept = [read_completions(tmp_path / run).drop_columns(["images"]) for run in ("whole", "cut")]
        assert kept[0].equals(kept[1])


def test_totals_are_those_of_the_kept_groups_alone(grpo: Run) -> None:
    """The same gradients as a run that the loader brings just these prompts."""
    options = OPTIONS | {"max_steps": 1, "beta": 0.1, "scale_rewards": "batch"}
    trainer = grpo(callbacks=[searched := Gradients()], **options)
    trainer.train()
    plain = grpo(callbacks=[given := Gradients()], **options | {"dynamic_sampling": False})
    prepare, prompts = plain.prepare, [item.group.prompt for item in trainer.experience]
    plain.prepare = lambda inputs: prepare(prompts if inputs else inputs)
    plain.train()
    assert furthest(searched.steps[0], given.steps[0]) < 2e-5


def test_the_limit_is_said_and_counted(grpo: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def flat(completions: list[Any], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    trainer = grpo(**OPTIONS | {"reward_funcs": flat, "max_sampling_rounds": 3, "max_steps": 1})
    before = weights(trainer)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rollout/num_rounds"] == 3
    assert log["rollout/num_groups_sampled"] == 18
    assert log["rollout/num_groups_thrown_away"] == 12
    assert log["rollout/num_groups_without_spread"] == 6
    assert "step 1: after 3 rounds and 18 groups, 6 of the 6 groups" in capsys.readouterr().out
    assert same(before, weights(trainer))


def test_a_streamed_data_set_is_refused(grpo: Run) -> None:
    import datasets

    stream = datasets.Dataset.from_list([{"prompt": "what?", "solution": "red"}] * 8).to_iterable_dataset()
    with pytest.raises(ConfigError, match="dynamic_sampling takes further prompts by row number"):
        grpo(**OPTIONS, train_dataset=stream)
