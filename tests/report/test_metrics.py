from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boresight.report import MeanMetrics


def test_kinds():
    metrics = MeanMetrics()
    metrics.mean("loss", 1.0)
    metrics.mean("loss", torch.tensor([2.0, 6.0]))
    metrics.mean("clip", torch.tensor([[5.0, 7.0], [1.0, 9.0]]), weight=torch.tensor([[True, False], [True, False]]))
    metrics.mean("entropy", 4.0, weight=3.0)
    metrics.mean("entropy", 8.0, weight=1.0)
    metrics.add("kl", torch.tensor(6.0), torch.tensor(4))
    metrics.add("kl", 1.0, 2.5)
    metrics.mean("kl", 3.5, weight=0.5)
    metrics.sum("encodes", 2)
    metrics.sum("encodes", torch.tensor([3, 5]))
    metrics.min("short", torch.tensor([4, 7]))
    metrics.min("short", 6)
    metrics.max("long", torch.tensor([4.0, 7.0]))
    metrics.max("long", 5)
    assert metrics.flush() == {
        "loss": 3.0,
        "clip": 3.0,
        "entropy": 5.0,
        "kl": 1.25,
        "encodes": 10,
        "short": 4,
        "long": 7,
    }
    assert metrics.flush() == {}


def test_nan_takes_no_part():
    metrics = MeanMetrics()
    values = torch.tensor([math.nan, 2.0, 5.0, math.nan])
    for add in (metrics.mean, metrics.sum, metrics.min, metrics.max):
        add(add.__name__, values)
    metrics.mean("nothing", math.nan)
    metrics.add("add", math.nan, 3)
    metrics.add("add", torch.tensor(8.0), 2)
    metrics.add("no count", 0.0, 0)
    metrics.min("nothing at all", torch.tensor([math.nan]))
    assert metrics.flush() == {"mean": 3.5, "sum": 7.0, "min": 2.0, "max": 5.0, "add": 4.0}


def test_gradients_are_let_go():
    metrics = MeanMetrics()
    metrics.mean("loss", torch.tensor([2.0], requires_grad=True) * 3)
    assert metrics.flush() == {"loss": 6.0}


def test_prefix():
    metrics = MeanMetrics()
    metrics.mean("reward", 1.0)
    assert metrics.flush(prefix="eval_") == {"eval_reward": 1.0}


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-9, 9), st.integers(1, 5)), min_size=1))
def test_ranks_change_nothing(added):
    one, ranks = MeanMetrics(), [MeanMetrics() for _ in range(3)]
    for rank, value, weight in added:
        for metrics in (one, ranks[rank]):
            metrics.mean("mean", value, weight=weight)
            metrics.sum("sum", value)
            metrics.min("min", value)
            metrics.max("max", value)
            metrics.sum(f"only rank {rank}", weight)
    parts: list = []
    for metrics in ranks[1:]:
        metrics.flush(gather=lambda own: parts.append(own) or [own])
    whole = ranks[0].flush(gather=lambda own: [own, *parts])
    assert whole == pytest.approx(one.flush())


def test_one_name_has_one_kind():
    metrics = MeanMetrics()
    metrics.mean("loss", 1.0)
    with pytest.raises(AssertionError, match="'loss' is a mean, and was given a sum"):
        metrics.sum("loss", 1.0)


def test_absorbing_is_adding():
    one, other, both = MeanMetrics(), MeanMetrics(), MeanMetrics()
    for metrics, values in ((one, [1.0, 2.0]), (other, [6.0])):
        for target in (metrics, both):
            target.mean("m", torch.tensor(values))
            target.max("x", values[-1])
            target.sum("s", len(values))
    one.absorb(other)
    assert one.flush() == both.flush() == {"m": 3.0, "x": 6.0, "s": 3.0}


def test_the_extremes_of_nothing_are_left_out() -> None:
    """A micro-batch in which nothing counted hands over +∞ and −∞; alone they are no number, beside one they are no extreme."""
    metrics = MeanMetrics()
    metrics.max("lonely", -math.inf)
    metrics.min("lonely_too", math.inf)
    for value in (-math.inf, -3.5, math.nan):
        metrics.max("largest", torch.tensor(value))
    for value in (math.inf, 2.25, math.nan):
        metrics.min("least", torch.tensor(value))
    assert metrics.flush() == {"largest": -3.5, "least": 2.25}


def _no_work(name: str) -> bool:
    return not name.startswith("work/")


def test_each_step_by_itself_beside_the_mean_of_all() -> None:
    """Two ranks, two steps before the log: reward (1, 3 | 5) and (7), length at most 4 and 6; `flush` is as without."""
    ranks = [MeanMetrics(), MeanMetrics()]
    for metrics, values, longest, loss in ((ranks[0], [1.0, 3.0], 4, 0.5), (ranks[1], [5.0], 2, 1.5)):
        metrics.mean("reward", torch.tensor(values))
        metrics.max("longest", longest)
        metrics.sum("work/tokens", 10)
        metrics.end_step(1, loss=torch.tensor(loss))
    ranks[0].mean("reward", 7.0)
    ranks[0].max("longest", 6)
    for metrics in ranks:
        metrics.end_step(2, loss=2.0)
    kept: list = []
    ranks[1].copied().take_steps(_no_work, gather=lambda own: kept.append(own) or [own])
    wanted = ranks[0].take_steps(_no_work, gather=lambda own: [own, *kept])
    assert wanted == [
        (1, {"loss": 1.0, "reward": 3.0, "longest": 4}),
        (2, {"loss": 2.0, "reward": 7.0, "longest": 6}),
    ]
    assert ranks[0].take_steps() == []
    ranks[0].mean("reward", 9.0)
    ranks[0].end_step(3)
    assert ranks[0].take_steps() == [(3, {"reward": 9.0})]
    assert ranks[0].flush() == {"reward": 5.0, "longest": 6, "work/tokens": 10}


def test_steps_that_a_checkpoint_holds_are_not_taken_again() -> None:
    saved = MeanMetrics()
    saved.mean("reward", 1.0)
    saved.end_step(1)
    restored = MeanMetrics()
    restored.load_state_dict(saved.state_dict())
    restored.mean("reward", 3.0)
    restored.end_step(2)
    assert restored.take_steps() == [(2, {"reward": 3.0})] and restored.flush() == {"reward": 2.0}
