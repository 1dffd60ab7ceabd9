"""Starts stock vLLM with the settings that training needs, and restarts it when it dies."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from boresight.errors import ConfigError
from boresight.rollout.vllm.keys import LOOPBACK, drop_key, new_key
from boresight.rollout.vllm.protocol.messages import (
    ASK_REPLICAS,
    BAN,
    ENGINE,
    EXTENSION,
    KEY,
    KEY_CHECK,
    NCCL_ENGINE,
    STARTED_BY,
)

MAX_RESTARTS = 5
"""How often a server is restarted within `RESTART_WINDOW_S`. After one more death, boresight gives up."""
RESTART_WINDOW_S = 600.0

OURS = {
    "--worker-extension-cls": EXTENSION,
    "--logits-processors": BAN,
    "--logprobs-mode": "processed_logprobs",
    "--generation-config": "vllm",
}
"""Flags that boresight sets, and users may not."""


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
        flags: further flags of vLLM's server, passed on unchanged.
        nccl: receive weights by NCCL instead of by file.
        min_pixels, max_pixels: the image budget, equal to the trainer's.

    Raises:
        ConfigError: a flag is boresight's to set, or other machines could reach the server without a key.
    """
    import torch  # here, because torch is slow to import and `boresight --help` imports this file for its constants

    given = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    if taken := given & {*OURS, "--weight-transfer-config"}:
        raise ConfigError(f"{min(taken)} is boresight's to set: drop it (--nccl chooses how weights arrive).")
    budget = {
        name: value for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value is not None
    }
    if budget and "--mm-processor-kwargs" in given:
        raise ConfigError("--min_pixels and --max_pixels are written into --mm-processor-kwargs: drop one of the two.")
    host = _flag(flags, "--host")
    if host is not None and host not in LOOPBACK and not os.environ.get(KEY):
        raise ConfigError(
            f"--host {host}: whoever reaches the server can change its weights and run its methods. Set the environment variable {KEY} to "
            "the same secret here and for the trainer, or leave out --host, so that only this machine reaches it."
        )
    transfer = {"backend": NCCL_ENGINE if nccl else ENGINE}
    # The server's module instead of the command `vllm`, which needs package metadata that a CPU build lacks.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--enable-scale-out"]
    command += [part for pair in OURS.items() for part in pair]
    command += ["--weight-transfer-config", json.dumps(transfer)]
    # The last is asked first: without the key, no call gets past it.
    command += ["--middleware", ASK_REPLICAS, "--middleware", KEY_CHECK]
    command += [] if host is not None else ["--host", LOOPBACK[0]]
    command += ["--mm-processor-kwargs", json.dumps(budget)] if budget else []
    if not torch.cuda.is_available():
        command += [] if "--enable-chunked-prefill" in given else ["--no-enable-chunked-prefill"]  # see `local.ON_CPU`
    return [*command, *flags]


def server_environment(key: str = "") -> dict[str, str]:
    """The environment that such a server needs.

    Args:
        key: what it asks of every request.
    """
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **os.environ,
        KEY: key,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        STARTED_BY: str(os.getpid()),
    }


class Server:
    """A server process that this process starts, and ends with its children on `close`. On Linux it also ends when the thread that
    started it ends, for any reason.

    Args:
        log: a file to which its output is appended; None writes to this process's output.
    """

    def __init__(self, command: Sequence[str], *, log: Path | None = None) -> None:
        self._port = _address(command)[1]
        with contextlib.ExitStack() as stack:
            output: Any = None
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(log.open("ab"))
            # In a new session, Ctrl-C reaches only this process, which then shuts the server down cleanly.
            self.process = subprocess.Popen(
                command,
                env=server_environment(new_key(self._port)),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self, patience_s: float = 20.0) -> None:
        """Ask it to end, and kill it if it does not within `patience_s`."""
        drop_key(self._port)
        for sent in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, sent)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue
            if sent is signal.SIGTERM:
                # Workers that still run have had the same time to end.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            return


def serve(command: Sequence[str], *, max_restarts: int = MAX_RESTARTS, report: Callable[[str], object] = print) -> int:
    """Run a server until this process receives a signal to end (Ctrl-C or SIGTERM), and restart it when it dies.

    Args:
        command: from `server_command`.
        max_restarts: most restarts within `RESTART_WINDOW_S`.
        report: is called with one line for every death.

    Returns:
        The exit code: 0 after a signal; 1 if the server died too often or never started.
    """
    deaths: deque[float] = deque(maxlen=max_restarts + 1)
    with _asked_to_end() as asked:
        while True:
            started = time.monotonic()
            code, was_up = _run(command, asked)
            if asked:
                return 0
            now = time.monotonic()
            deaths.append(now)
            died = f"boresight: vLLM ended ({_reason(code)}) after {now - started:.0f} s"
            if not was_up and code >= 0:
                report(f"{died} before it was up; boresight gives up. The output of vLLM is above.")
                return 1
            if len(deaths) > max_restarts and now - deaths[0] < RESTART_WINDOW_S:
                report(
                    f"{died}; it died {len(deaths)} times within {RESTART_WINDOW_S / 60:g} minutes, so boresight gives up."
                )
                return 1
            report(f"{died} and is restarted.")


@contextlib.contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list; afterwards restore the former handlers."""
    asked: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda number, frame: asked.append(number)) for kind in kinds]
    try:
        yield asked
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _run(command: Sequence[str], asked: Sequence[int]) -> tuple[int, bool]:
    """Run one server until it ends: its exit code, and whether it was ever up."""
    server, was_up = Server(command), False
    address = _address(command)
    try:
        while server.is_alive() and not asked:
            was_up = was_up or _listens(address)
            time.sleep(0.2)
    finally:
        server.close()
    return server.process.returncode, was_up


def _reason(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _address(command: Sequence[str]) -> tuple[str, int]:
    """The host and port that a server will listen on, read from its flags."""
    host = _flag(command, "--host") or LOOPBACK[0]
    return LOOPBACK[0] if host in ("0.0.0.0", "::") else host, int(_flag(command, "--port") or 8000)


def _flag(command: Sequence[str], name: str) -> str | None:
    """The last value of a flag, in either spelling; None where it is not given."""
    words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return dict(itertools.pairwise(words)).get(name)


def _listens(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1.0).close()
    except OSError:
        return False
    return True
