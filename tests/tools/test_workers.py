"""Tools in processes of their own: a hang of any kind ends at the deadline and holds nobody up."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from boresight.tools import calculator
from boresight.tools.parsing import ToolCall
from boresight.tools.running import run_calls
from boresight.tools.workers import ToolWorkers


def spins() -> str:
    """Compute for ever."""
    while True:
        pass


def holds() -> str:
    """Hang in C, where no other thread of the process can run."""
    return str(re.match(r"(a+)+$", "a" * 64 + "b"))


def crashes() -> str:
    """End the process."""
    os._exit(3)


def raises() -> str:
    """Raise."""
    raise ValueError("out of order")


def where() -> int:
    """Return the number of the process."""
    return os.getpid()


def shows() -> list[dict[str, Any]]:
    """Return an image."""
    return [{"type": "image", "image": Image.new("RGB", (8, 4), "red")}]


def made_here(word: str) -> str:
    """Return a word twice.

    Args:
        word: The word.
    """
    return word * 2


SEEN: list[int] = []


def counts() -> int:
    """Count."""
    SEEN.append(1)
    return len(SEEN)


class Device:
    def read(self) -> str:
        return "7"


TOOLS = {tool.__name__: tool for tool in (calculator, spins, holds, crashes, raises, where, shows, made_here, counts)}


@pytest.fixture(scope="module")
def workers() -> Iterator[ToolWorkers]:
    made = ToolWorkers(TOOLS, 3)
    yield made
    made.close()


def outcomes(workers: ToolWorkers | None, *calls: ToolCall, timeout_s: float = 1.0) -> list[tuple[str, Any]]:
    found = run_calls([([call], TOOLS) for call in calls], timeout_s, workers)
    return [(outcome.kind, outcome.value) for (outcome,) in found]


def test_a_hang_of_any_kind_ends_and_holds_nobody_up(workers: ToolWorkers) -> None:
    outcomes(workers, *[ToolCall("where", {})] * 3)  # starts the processes
    start = time.monotonic()
    found = outcomes(
        workers,
        ToolCall("holds", {}),
        ToolCall("spins", {}),
        *[ToolCall("calculator", {"expression": f"{number} * 2"}) for number in range(12)],
        ToolCall("crashes", {}),
        ToolCall("raises", {}),
    )
    assert time.monotonic() - start < 20
    assert found[:2] == [("timed_out", "took longer than 1 s")] * 2
    assert found[2:14] == [("ok", str(2 * number)) for number in range(12)]
    assert found[14:] == [
        ("raised", "ended its worker process (exit status 3)"),
        ("raised", "ValueError: out of order"),
    ]
    assert outcomes(workers, ToolCall("made_here", {"word": "ab"})) == [("ok", "abab")]


def test_functions_run_elsewhere_and_give_the_same(workers: ToolWorkers) -> None:
    ((_, there),) = outcomes(workers, ToolCall("where", {}))
    assert there != os.getpid()
    assert outcomes(None, ToolCall("where", {})) == [("ok", os.getpid())]
    (((_, (part,))),) = outcomes(workers, ToolCall("shows", {}))
    assert part["image"].size == (8, 4)
    assert part["image"].getpixel((0, 0)) == (255, 0, 0)


def test_a_function_with_a_state_stays(workers: ToolWorkers) -> None:
    device = Device()

    def reads() -> str:
        """Read."""
        return device.read()

    assert list(workers.reasons) == ["counts"]
    assert workers.reasons["counts"] == "it refers to SEEN, a list of the training process"
    before = len(SEEN)
    assert outcomes(workers, ToolCall("counts", {}), ToolCall("counts", {}))[0][0] == "ok"
    assert len(SEEN) == before + 2
    other = ToolWorkers({"reads": reads, "bound": device.read}, 2)
    assert other.reasons == {
        "reads": "it refers to device, a Device of the training process",
        "bound": "it is no plain function, and may have a state",
    }
    assert not ToolWorkers(TOOLS, 0).runs("calculator", calculator)
