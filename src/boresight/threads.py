"""How the threads of a process share a machine: they sleep while they wait for each other.

torch's OpenMP threads spin at the end of every parallel loop by default. With another process on one of the cores, the spinning
thread takes the time that the others need, and a training step becomes many times slower. Threads that sleep cost a few
microseconds at each loop. docs/demo.md has measurements.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

QUIET_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""OpenMP's own setting, which GNU's runtime reads, and that of Intel's and LLVM's runtimes."""

OTHER_NAMES = {"OMP_WAIT_POLICY": ("GOMP_SPINCOUNT",), "KMP_BLOCKTIME": ("KMP_LIBRARY",)}
"""Settings by which a user decides the same."""


def let_waiting_threads_sleep(environment: MutableMapping[str, str] | None = None) -> None:
    """Set how threads wait, where the user's environment does not. Child processes inherit it, an engine's included.

    An OpenMP runtime reads this once, when torch is imported, so that it has no effect afterwards.

    Args:
        environment: to be changed; None: that of this process.
    """
    environment = os.environ if environment is None else environment
    for name, value in QUIET_THREADS.items():
        if not any(other in environment for other in OTHER_NAMES[name]):
            environment.setdefault(name, value)
