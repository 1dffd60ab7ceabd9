"""Two network namespaces as two hosts: only their pair of devices connects them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.benchmarks.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "two_hosts.sh"


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True).returncode != 0,
    reason="this system lets nobody make network namespaces",
)
def test_one_host_reaches_the_other() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([SCRIPT, "--network"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "from the server\n"), done.stderr
