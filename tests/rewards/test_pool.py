"""Rewards under attack, in real processes that are really killed."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from boresight.errors import ConfigError, RewardError
from boresight.rewards import Scorer, accuracy_reward

# These travel by value, as functions of a user's script do.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def attack(completions: list[str], **columns: Any) -> list[Any]:
    """Does what the completion says."""
    import ctypes
    import os
    import sys
    import time

    told = completions[0]
    if told == "failure":
        from boresight.rewards import Failure

        return [Failure("of its own")]
    if told == "hang":
        time.sleep(60)
    if told == "raise":
        raise KeyError("no such thing")
    if told == "exit":
        os._exit(3)
    if told == "crash":
        ctypes.string_at(0)
    if told == "leak":
        return [len(bytearray(2**40))]
    if told == "grow":
        globals().setdefault("kept", []).append(bytearray(600 * 2**20))
    if told == "binary":
        sys.stdout.buffer.write(bytes(range(256)) * 64)
        sys.stdout.flush()
    if told == "unpicklable":
        return [(number for number in [1])]
    return [{"none": None, "nan": math.nan, "infinite": math.inf, "word": "good"}.get(told, 1.0)]


def wrong_length(completions: list[str], **columns: Any) -> list[float]:
    return [1.0, 2.0]


def process_id(completions: list[str], **columns: Any) -> list[float]:
    import os

    return [float(os.getpid())]


@pytest.fixture
def pooled() -> Iterator[Any]:
    made: list[Scorer] = []

    def make(func: Any, **options: Any) -> Scorer:
        settings = {"workers": 2, "timeout_s": 30.0, "max_failed_rate": 1.0} | options
        made.append(Scorer(func, **settings))
        return made[-1]

    yield make
    for scorer in made:
        scorer.close()


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("hang", "took longer than reward_timeout=4 s"),
        ("raise", "KeyError: 'no such thing'"),
        ("exit", r"ended its worker process \(exit status 3\)"),
        ("crash", r"ended its worker process \(exit status -11\)"),
        ("leak", "ended its worker process"),
        ("unpicklable", "TypeError"),
        ("failure", "of its own"),
    ],
)
def test_an_attack_harms_its_own_completion_alone(make_group, pooled, caplog, told: str, reason: str) -> None:
    # Loading what the function needs takes a worker seconds once, and then no time that counts.
    scorer = pooled(attack, timeout_s=4.0 if told == "hang" else 60.0)
    table = scorer.score([make_group(["fine", told, "also fine", "fine again"], index=7)])
    assert table.failed.tolist() == [False, True, False, False]
    assert table.values[[0, 2, 3], 0].tolist() == [1.0, 1.0, 1.0]
    assert math.isnan(table.total[1])
    assert table.metrics["rewards/attack/failed"] == [0.25]
    assert "row 7" in caplog.text
    assert __import__("re").search(reason, caplog.text)


def test_what_is_no_failure(make_group, pooled) -> None:
    """Not applying is not failing, and binary output is nobody's business."""
    table = pooled(attack).score([make_group(["none", "nan", "binary"])])
    assert not table.failed.any()
    assert table.values[:, 0].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("func", "told", "message"),
    [
        (attack, "infinite", "returned inf for completion 0 .row 5."),
        (attack, "word", "returned 'good'"),
        (wrong_length, "x", "returned 2 values for 1 completions"),
    ],
)
def test_a_broken_contract_stops_the_run(make_group, pooled, func: Any, told: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        pooled(func).score([make_group([told], index=5)])


def test_too_many_failures_stop_the_run_with_the_worst_named(make_group, pooled) -> None:
    groups = [make_group(["raise", "fine"], index=index) for index in range(8)]
    with pytest.raises(
        RewardError, match=r"failed on 8 of its last 16 .*max_failed_rate=0.25.*row 0: KeyError.*row 4: KeyError.*…"
    ):
        pooled(attack, max_failed_rate=0.25).score(groups)


def test_a_worker_that_leaks_is_replaced(make_group, pooled) -> None:
    """Each call keeps 600 MiB: before the limit is reached the worker dies, and the next one starts clean."""
    scorer = pooled(attack, workers=1, memory_gib=2.0)
    tables = [scorer.score([make_group(["grow"])]) for _ in range(6)]
    outcomes = [bool(table.failed[0]) for table in tables]
    assert True in outcomes
    assert False in outcomes[outcomes.index(True) + 1 :]


def test_leaving_is_a_failure_that_costs_no_worker(make_group, pooled, caplog) -> None:
    def leaves(completions: list[str], **columns: Any) -> list[float]:
        import os
        import sys

        if completions[0] == "leave":
            sys.exit(3)
        return [float(os.getpid())]

    table = pooled(leaves, workers=1).score([make_group(["a", "leave", "b"])])
    assert table.failed.tolist() == [False, True, False] and table.values[0] == table.values[2]
    assert "SystemExit: 3" in caplog.text


def forks(completions: list[str], **columns: Any) -> list[float]:
    """Starts a copy of the worker, which also returns."""
    import os

    os.fork()
    return [float(len(completions[0]))]


def test_a_function_that_forks_shifts_no_answer(make_group, pooled) -> None:
    texts = ["a" * length for length in range(1, 25)]
    scorer = pooled(forks)
    for _ in range(2):
        assert scorer.score([make_group(texts)]).values[:, 0].tolist() == [float(len(text)) for text in texts]


def test_an_answer_with_another_number_is_left_out(make_group, pooled) -> None:
    """Whoever holds the worker's connection may write to it."""

    def intrudes(completions: list[str], **columns: Any) -> list[float]:
        import gc
        from multiprocessing.connection import Connection

        import cloudpickle

        (connection,) = [each for each in gc.get_objects() if isinstance(each, Connection)]
        connection.send_bytes(cloudpickle.dumps((-1, [99.0], [], None, 0.0)))
        return [float(len(completions[0]))]

    scorer = pooled(intrudes, workers=1)
    assert scorer.score([make_group(["a", "bb", "ccc"])]).values[:, 0].tolist() == [1, 2, 3]


def test_trainer_state_reaches_a_worker_without_torch(make_group, pooled) -> None:
    """Whose import would take seconds, within the deadline, and hundreds of MiB."""
    from transformers import TrainerState

    def steps(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        import sys

        assert not {"torch", "transformers"} & set(sys.modules)
        assert trainer_state.log_history == [{"loss": 2.0, "step": 2}]
        return [float(trainer_state.global_step)]

    state = TrainerState(global_step=7, log_history=[{"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2}])
    table = pooled(steps, workers=1).score([make_group(["a", "b"])], trainer_state=state)
    assert table.values[:, 0].tolist() == [7, 7]
    assert len(state.log_history) == 2


def test_workers_live_as_long_as_they_behave(make_group, pooled) -> None:
    scorer = pooled(process_id)
    first, second = (set(scorer.score([make_group(["a"] * 8)]).values[:, 0].tolist()) for _ in range(2))
    assert len(first | second) <= 2
    assert float(os.getpid()) not in first
    os.kill(int(first.pop()), signal.SIGKILL)
    time.sleep(0.1)
    third = scorer.score([make_group(["a"] * 8)])
    assert int(third.failed.sum()) <= 1  # at most the completion that found its worker dead


def test_what_is_logged_reaches_the_table(make_group, pooled) -> None:
    def talkative(completions, log_metric, log_extra, **columns):
        log_metric("words", len(completions[0].split()))
        log_extra("first", [completions[0][0]])
        return [0.5]

    table = pooled(talkative).score([make_group(["red it is", "blue"])])
    assert table.metrics["words"] == [3.0, 1.0]
    assert table.extra["first"] == ["r", "b"]
    assert table.metrics["rewards/talkative/slowest_s"][0] >= 0


def test_built_in_rewards_give_the_same_marks(make_group, pooled) -> None:
    groups = [
        make_group(
            ["<answer>$x^2$</answer>", "<answer>$x \\cdot x$</answer>", "<answer>$y$</answer>"], solution="$x^2$"
        )
    ]
    assert (
        pooled(accuracy_reward, workers=1).score(groups).values.tolist()
        == Scorer(accuracy_reward).score(groups).values.tolist()
    )


def test_a_worker_of_a_built_in_reward_loads_no_torch(make_group, pooled) -> None:
    """Which would take it seconds."""

    def heavy(completions, solution, **columns):
        import sys

        from boresight.rewards import exact_answer_reward, get_iou_reward, think_format_reward

        assert get_iou_reward("original") and think_format_reward(completions) == [0]
        assert exact_answer_reward(completions, solution) == [1]
        return [float("torch" in sys.modules or "transformers" in sys.modules)]

    group = make_group(["<answer>red</answer>"], solution="red")
    assert pooled(heavy, workers=1).score([group]).values.tolist() == [[0.0]]


def test_what_cannot_travel_is_refused() -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(ConfigError, match="reward_workers=0"):
        Scorer(lambda completions, **columns: [float(lock.locked())], workers=1)


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        """
print("started")
from boresight.rewards.pool import RewardPool

def mine(completions):
    return [len(completions[0])]

pool = RewardPool(mine, num_workers=2, timeout_s=60)
print([answer.value for answer in pool({"completions": ["red", "blue"]}, 2)])
pool.close()
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["started", "[[3], [4]]"], done.stderr[-2000:]
