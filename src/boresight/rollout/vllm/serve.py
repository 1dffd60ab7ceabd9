"""Starting stock vLLM with what training needs, and starting it again when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from boresight.errors import ConfigError
from boresight.rollout.vllm.names import BAN, ENGINE, EXTENSION, NCCL_ENGINE

MAX_RESTARTS = 5
"""Deaths within `RESTART_WINDOW_S` after which the server is given up."""
RESTART_WINDOW_S = 600.0

OURS = {
    "--worker-extension-cls": EXTENSION,
    "--logits-processors": BAN,
    "--logprobs-mode": "processed_logprobs",
    "--generation-config": "vllm",
}
"""Flags that boresight sets, and a user may not."""


def server_command(
    model: str,
    flags: Sequence[str],
    *,
    nccl: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> list[str]:
    """The command line of a stock vLLM server that a trainer can use.

    Args:
        model: a folder or a hub id.
        flags: further flags of vLLM's server, handed on as they are.
        nccl: take weights by NCCL instead of by file.
        min_pixels, max_pixels: the picture budget, as the trainer has it.

    Raises:
        ConfigError: a flag is boresight's to set.
    """
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    if taken := given & {*OURS, "--weight-transfer-config"}:
        raise ConfigError(f"{min(taken)} is boresight's to set: drop it (--nccl chooses how weights arrive).")
    budget = {
        name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None
    }
    if budget and "--mm-processor-kwargs" in given:
        raise ConfigError("--min_pixels and --max_pixels are written into --mm-processor-kwargs: drop one of the two.")
    transfer = {"backend": NCCL_ENGINE if nccl else ENGINE}
    # The server's own module: its command-line front asks for the metadata of a package that a CPU build does not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--enable-scale-out"]
    command += [part for pair in OURS.items() for part in pair]
    command += ["--weight-transfer-config", json.dumps(transfer)]
    command += ["--mm-processor-kwargs", json.dumps(budget)] if budget else []
    return [*command, *flags]


def server_environment() -> dict[str, str]:
    """The environment that such a server needs."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
    }


class Server:
    """A server process of one's own, ended with its children when it is closed."""

    def __init__(self, command: Sequence[str], *, quiet: bool = False) -> None:
        output: Any = subprocess.DEVNULL if quiet else None
        # A session of its own: Ctrl-C reaches us alone, and we end it in order.
        self.process = subprocess.Popen(
            command,
            env=server_environment(),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self, patience_s: float = 20.0) -> None:
        """Ask it to end, and end it."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sent)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            if sent is signal.SIGTERM:
                # Its workers have had their chance as well.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            return


def serve(command: Sequence[str], say: Any = print) -> int:
    """Run a server until it is asked to end; start it again when it dies.

    Returns:
        What the shell is told: 0 when it was asked to end, 1 when it was given up.
    """
    deaths: deque[float] = deque(maxlen=MAX_RESTARTS)
    asked: list[int] = []
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: asked.append(number))
    while not asked:
        server = Server(command)
        started = time.monotonic()
        try:
            while server.is_alive() and not asked:
                time.sleep(0.2)
        finally:
            server.close()
        if asked:
            break
        now = time.monotonic()
        full = len(deaths) == MAX_RESTARTS and now - deaths[0] < RESTART_WINDOW_S
        if full or (now - started < 5.0 and server.process.returncode):
            say(f"boresight: vLLM ended with {server.process.returncode} and is given up; what it said stands above.")
            return 1
        deaths.append(now)
        say(f"boresight: vLLM ended with {server.process.returncode} after {now - started:.0f} s and is started again.")
    return 0
