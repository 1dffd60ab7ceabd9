"""Processes that begin with boresight imported.

To import torch and transformers takes a process longer than most tests need for what they do in it. So one process imports them, once
for each worker of pytest, and forks itself for every command. What it forks is a process of its own, with the environment, output and
exit status of one that `subprocess` starts; only the imports, and what they read of the environment, are from before.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINGER_S = 20
"""Seconds that other ranks have to end once one has failed."""


class Parent:
    """The process that forks, as its client knows it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except BaseException:
            self.close()  # an answer that was not read would be taken for the next one's
            raise

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


_parent: list[Parent] = []


def parent() -> Parent:
    if not _parent or _parent[0].process.poll() is not None:
        _parent[:] = [Parent()]
    return _parent[0]


class Fork:
    """A module run as `python -m module words` would, or a script."""

    def __init__(
        self, words: list[str], output: Path, errors: Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            words: the module's name or the script's path, and its arguments.
            output, errors: files for stdout and stderr, which may be the same.
            env: variables beside those of this process.
        """
        self.returncode: int | None = None
        request = {"words": words, "output": str(output), "errors": str(errors), "cwd": str(cwd)}
        self._parent = parent()
        self.pid: int = self._parent.ask({"start": request | {"env": {**os.environ, **(env or {})}}})

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._parent.ask({"poll": self.pid})
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Raises: TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} is still running after {seconds} s")
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(
    *words: str, ranks: int = 1, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Done:
    """Run a command to its end, on so many ranks of one machine; the first status that is not 0, and what all wrote.

    Raises:
        TimeoutError: after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        forks = [Fork([*words], output, errors, cwd, {**(env or {}), **of_rank}) for of_rank in environments(ranks)]
        try:
            deadline = time.monotonic() + timeout
            while any(fork.poll() is None for fork in forks) and not any(fork.poll() for fork in forks):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{words} ran for {timeout} s\n{errors.read_text()[-3000:]}")
                time.sleep(0.02)
            failed = next((fork.returncode for fork in forks if fork.returncode), 0)
            with contextlib.suppress(TimeoutError):  # a rank that waits for one that failed
                for fork in forks:
                    fork.wait(LINGER_S)
        finally:
            for fork in forks:
                fork.kill()
        return Done(failed, output.read_text(), errors.read_text())


def environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun gives each rank; nothing for one."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def serve() -> None:
    """Fork and answer until the client is gone; returns in each process that is forked."""
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                return become(request["start"])
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Take the command's streams, folder, environment and arguments."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for stream, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["output"], flags),
        (2, request["errors"], flags),
    ):
        file = os.open(name, mode)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["words"]


if __name__ == "__main__":
    import transformers

    import boresight  # first: it sets what OpenMP reads as torch is loaded

    for name in ("SFTTrainer", "DPOTrainer", "GRPOTrainer"):
        getattr(boresight, name)
    for name in ("AutoProcessor", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"):
        getattr(transformers, name)
    gc.collect()
    gc.freeze()  # so that forks neither look through what was imported nor copy it
    serve()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[0].endswith(".py"):
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
