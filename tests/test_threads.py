from __future__ import annotations

import os
import subprocess
import sys

from boresight.threads import let_waiting_threads_sleep


def test_waiting_threads_sleep_unless_the_user_decides() -> None:
    environment = {"PATH": "/bin"}
    let_waiting_threads_sleep(environment)
    assert environment == {"PATH": "/bin", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    for own in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}):
        environment = dict(own)
        let_waiting_threads_sleep(environment)
        assert environment == {**own, "KMP_BLOCKTIME": "0"}


def test_torch_reads_it_in_every_process_that_imports_boresight() -> None:
    """What the OpenMP runtime itself reports when it is loaded."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    shown = subprocess.run(
        [sys.executable, "-c", "import boresight, torch"],
        env={**clean, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stdout + shown.stderr
