"""A fork is what `subprocess` would have started: its words, folder, environment, streams and status are its own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests import forks

SCRIPT = """
import os, sys, time
rank = os.environ.get("RANK", "alone")
print(rank, *sys.argv[1:], os.getcwd(), os.environ["OWN"])
print("torch" in sys.modules, sys.path[0], __name__, file=sys.stderr)
if rank == "1":
    sys.exit(3)
time.sleep(float(sys.argv[1]))
print("slept", flush=True)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    return file


def test_a_command_has_its_own_surroundings(script: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = forks.run(str(script), "0", "more", cwd=tmp_path / "here", env={"OWN": "mine"})
    assert (done.returncode, done.stdout) == (0, f"alone 0 more {tmp_path / 'here'} mine\nslept\n")
    assert done.stderr == f"True {tmp_path} __main__\n"
    assert "OWN" not in os.environ
    # Nothing of one command is left for the next.
    failed = forks.run(str(script), "0")
    assert failed.returncode == 1
    assert failed.stderr.endswith("KeyError: 'OWN'\n")


def test_a_rank_that_fails_ends_the_others(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "LINGER_S", 0.2)
    done = forks.run(str(script), "30", ranks=2, env={"OWN": "mine"})
    assert done.returncode == 3
    assert "slept" not in done.stdout  # the other
    assert f"1 30 {forks.ROOT} mine" in done.stdout.splitlines()


def test_signals_and_limits(script: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    fork = forks.Fork([str(script), "60"], output, output, env={"OWN": "mine"})
    assert fork.poll() is None
    with pytest.raises(TimeoutError, match="still running"):
        fork.wait(0.1)
    while not output.exists() or "__main__" not in output.read_text():
        time.sleep(0.01)
    os.kill(fork.pid, signal.SIGINT)
    assert fork.wait(20) != 0
    assert "KeyboardInterrupt" in output.read_text()
    other = forks.Fork([str(script), "60"], output, output, env={"OWN": "mine"})
    other.kill()
    assert other.returncode == -signal.SIGKILL
