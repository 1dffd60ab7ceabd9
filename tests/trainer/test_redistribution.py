"""The state of ranks that another number of ranks takes over."""

from __future__ import annotations

import pytest
import torch

from boresight.report.metrics import MeanMetrics
from boresight.trainer.redistribution import dealt, merged_sums


@pytest.mark.parametrize(
    ("old", "num_ranks", "new"),
    [
        ([["a0", "a1", "b0", "b1"], ["a2", "a3", "b2", "b3"]], 1, [["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]]),
        ([["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]], 2, [["a0", "a1", "b0", "b1"], ["a2", "a3", "b2", "b3"]]),
        ([["a0", "b0"], ["a1", "b1"], ["a2", "b2"]], 3, [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]),
        ([[], []], 1, [[]]),
    ],
)
def test_each_step_keeps_its_groups(old: list[list[str]], num_ranks: int, new: list[list[str]]) -> None:
    assert [dealt(old, 2, rank, num_ranks) for rank in range(num_ranks)] == new


def sums_of(value: float, weight: float, loss: float) -> dict[str, object]:
    metrics = MeanMetrics()
    metrics.mean("kl", torch.tensor(value), weight=torch.tensor(weight))
    return {"metrics": metrics.state_dict(), "loss": torch.tensor(loss), "step_of_last_log": 4}


def test_sums_add_up_to_the_same() -> None:
    """Three ranks become two: the mean over all is (1·1 + 2·3 + 4·4) / 8 before and after, and so is the mean loss."""
    old = [sums_of(1.0, 1.0, 0.5), sums_of(2.0, 3.0, 1.5), sums_of(4.0, 4.0, 4.0)]
    new = [merged_sums(old, rank, 2) for rank in (0, 1)]
    assert [float(sums["loss"]) for sums in new] == [2.0, 2.0]
    assert [sums["step_of_last_log"] for sums in new] == [4, 4]
    total = MeanMetrics()
    for sums in new:
        one = MeanMetrics()
        one.load_state_dict(sums["metrics"])
        total.absorb(one)
    assert total.flush() == {"kl": pytest.approx(23 / 8)}


def test_more_ranks_than_before_have_nothing_to_add() -> None:
    new = [merged_sums([sums_of(1.0, 1.0, 0.5)], rank, 2) for rank in (0, 1)]
    assert (list(new[0]["metrics"]), list(new[1]["metrics"])) == (["kl"], [])
    assert [float(sums["loss"]) for sums in new] == [0.5, 0.5]
