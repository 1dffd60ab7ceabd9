"""An error on one rank, or its end, is an error with its reason on the other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from boresight.demo.tiny import build_tiny
from tests import forks

SECONDS = 20
"""From the first rank's end to the last's."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("tiny"), vocab_size=512)


def run(case: str, model: Path, folder: Path) -> list[tuple[int, str]]:
    """Exit code and error output of two ranks, which end within `SECONDS` of each other."""
    words = ["tests.rank_faults", case, str(model), str(folder / "run")]
    files = [folder / f"rank{rank}.txt" for rank in (0, 1)]
    environments = forks.environments(ranks=2)
    ranks = [forks.Fork(words, file, file, env=env) for file, env in zip(files, environments, strict=True)]
    try:
        deadline = time.monotonic() + 240
        while all(process.poll() is None for process in ranks) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in ranks:
            process.wait(SECONDS)
    finally:
        for process in ranks:
            process.kill()
    return [(process.poll(), file.read_text()) for process, file in zip(ranks, files, strict=True)]


@pytest.mark.parametrize(
    ("case", "bad", "reason"),
    [
        pytest.param("reward", 1, "KeyError: 'no such answer'", marks=pytest.mark.soak),
        ("reader", 0, "OSError: the disk is gone"),
        pytest.param("memory", 1, "note: Lower max_tokens_per_pass", marks=pytest.mark.soak),
        ("hanging", 1, "ValueError: the loss is broken"),
    ],
)
def test_an_error_of_one_rank_is_raised_on_the_other(
    case: str,
    bad: int,
    reason: str,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    ends = run(case, model_folder, tmp_path)
    code, other = ends[1 - bad]
    assert code == 3 or case == "hanging", other[-3000:]
    assert code != 0
    assert f"On rank {bad}:" in other, other[-3000:]
    assert reason.split(": ", 1)[1].strip("'") in other[other.index(f"On rank {bad}:") :]


def test_a_killed_rank_ends_the_other(model_folder: Path, tmp_path: Path) -> None:
    (code, first), (killed, _) = run("killed", model_folder, tmp_path)
    assert killed == -9
    assert code == 3
    assert "RAISED RankError: On rank 1: the process ended without an error of its own" in first


def test_the_first_rank_says_for_whom_it_waits(model_folder: Path, tmp_path: Path) -> None:
    (code, first), (other, _) = run("slow", model_folder, tmp_path)
    assert (code, other) == (0, 0), first[-3000:]
    assert "boresight: rank 0 (the last micro-batch) waited" in first
    assert "s for rank 1, in step 1 for" in first


def test_a_rank_that_ended_well_is_no_failure(model_folder: Path, tmp_path: Path) -> None:
    assert [code for code, _ in run("late", model_folder, tmp_path)] == [0, 0]
