"""500 steps with flat memory, handles, threads and shared memory, and nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from boresight.trainer.run_folder import LOCK_FILE

from .conftest import Run

WARM, MIB = 100, 2**20


def taken() -> dict[str, int]:
    """What this process holds: bytes of memory, file handles, threads and files of shared memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "handles": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 -- a path of each would be one more handle
        "threads": threading.active_count(),
        "shared": len([*Path("/dev/shm").glob(f"torch_{os.getpid()}_*")]),
    }


class Watched(TrainerCallback):
    """Notes what is held after every 50th step."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, int]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 50 == 0:
            self.seen[state.global_step] = taken()


@pytest.mark.soak
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_500_steps_take_no_more_than_100(request: pytest.FixtureRequest, tmp_path: Path, method: str) -> None:
    before = taken()
    run: Run = request.getfixturevalue(method)
    options = {"save_strategy": "steps", "save_steps": 50, "save_total_limit": 2, "logging_steps": 10}
    trainer = run(output_dir=str(tmp_path / "run"), max_steps=500, callbacks=[watched := Watched()], **options)
    trainer.train()
    early, late = watched.seen[WARM], watched.seen[500]
    print(method, watched.seen)
    assert late["memory"] < early["memory"] + 64 * MIB
    assert late["handles"] <= early["handles"] + 2
    assert late["threads"] <= early["threads"]
    assert late["shared"] <= early["shared"]
    assert taken()["shared"] <= before["shared"]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-450", "checkpoint-500"]
    # The lock is this process's, which has not ended.
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == [LOCK_FILE]
