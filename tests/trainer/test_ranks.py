"""Two processes learn what one would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import forks

from .conftest import furthest
from .rows import ADVANTAGES, LOSSES
from .test_factorisation import RowsOf


@pytest.fixture(scope="module")
def runs(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs of all methods on one rank and on two."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = tmp_path_factory.mktemp(f"ranks{ranks}")
        words = ("tests.trainer.ranks", str(model_folder), str(folders[ranks]), str(ranks))
        done = forks.run(*words, ranks=ranks, timeout=400)
        assert done.returncode == 0, done.stderr[-10_000:]
    return folders


@pytest.mark.parametrize("method", ["sft", "grpo", "tools", "mpo", "aot", "precomputed"])
def test_two_ranks_equal_one(method: str, runs: dict[int, Path]) -> None:
    one, two = (torch.load(runs[ranks] / method / "gradients.pt", weights_only=False) for ranks in (1, 2))
    assert furthest(one["gradients"], two["gradients"]) < 2e-5
    # Of the last step that was logged, before the summary.
    log, other = (run["log"][-2] for run in (one, two))
    compared = {
        "loss",
        "entropy",
        "reward",
        "reward_std",
        "completions/mean_length",
        "mean_token_accuracy",
        "kl",
        "rewards/margins",
        "loss/bco_shift",
    } & log.keys()
    if method == "tools":
        # Of all that dynamic sampling sampled: two ranks take equal shares, which may be one group more.
        compared -= {"reward", "reward_std", "completions/mean_length"}
    assert len(compared) >= 2
    for name in compared:
        assert log[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("steps_per_rollout", [1, 2])
def test_two_ranks_equal_one_in_every_row(steps_per_rollout: int, runs: dict[int, Path], rows_of: RowsOf) -> None:
    one = rows_of("whole", steps_per_rollout)
    two = torch.load(runs[2] / f"rows{steps_per_rollout}" / "gradients.pt", weights_only=False)
    distances = {row: furthest(gradients, two[row]) for row, gradients in one.items()}
    assert len(distances) == len(LOSSES) + len(ADVANTAGES)
    assert {row: far for row, far in distances.items() if far > 2e-4} == {}


def test_an_error_of_one_rank_reaches_all(runs: dict[int, Path]) -> None:
    """Neither waits for the other: the rank that is well is told which one is not, and why."""
    told = [torch.load(runs[2] / f"told{rank}.pt") for rank in (0, 1)]
    assert told[0]["reward"].startswith(
        "On rank 1: reward function 'broken_on_the_second_rank' returned 3 values for 4"
    )
    assert told[1]["reward"] == told[0]["reward"].removeprefix("On rank 1: ")
    assert told[0]["gold"].startswith("The rewards do not accept the gold answers")
    assert told[1]["gold"] == f"On rank 0: {told[0]['gold']}"


def test_a_nan_on_one_rank_is_skipped_on_all(runs: dict[int, Path]) -> None:
    """No rank moves in that step, all move together in the next, and each keeps its share for a replay."""
    found = [torch.load(runs[2] / f"poisoned{rank}.pt") for rank in (0, 1)]
    assert [(one["skipped"], one["unmoved"]) for one in found] == [([1, 0], True)] * 2
    weights, others = (one["weights"] for one in found)
    assert all(torch.equal(value, others[name]) and value.isfinite().all() for name, value in weights.items())
    kept = sorted(path.name for path in (runs[2] / "poisoned" / "nonfinite").iterdir())
    assert kept == ["step_00000001.rank0.pt", "step_00000001.rank1.pt"]
