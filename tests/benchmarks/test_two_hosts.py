"""Two network namespaces as two hosts: only their pair of devices connects them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "two_hosts.sh"


needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True).returncode != 0,
    reason="this system lets nobody make network namespaces",
)


@needs_namespaces
def test_one_host_reaches_the_other() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([SCRIPT, "--network"], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "from the server\n"), done.stderr


@needs_namespaces
def test_the_server_ends_with_the_script(tmp_path: Path) -> None:
    """A shell stands in for Python: its server waits for ever, and its trainer ends at once when the server is there."""
    pid, python = tmp_path / "pid", tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'case "$*" in *vllm-serve*) echo $$ > {pid}; exec sleep 600;; *) until [ -s {pid} ]; do sleep 0.1; done;; esac\n'
    )
    python.chmod(0o755)
    command = [SCRIPT, "model", "rows", tmp_path / "run"]
    subprocess.run(
        command, env={**os.environ, "PYTHON": str(python)}, stdout=subprocess.DEVNULL, timeout=60, check=True
    )
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
