"""An engine in a separate process on the training process's device, for models that would interfere with the training process."""

from __future__ import annotations

import atexit
import json
import logging
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boresight.errors import EngineError
from boresight.rollout.vllm.protocol.messages import LOAD_FORMAT
from boresight.rollout.vllm.serve import Server, server_command
from boresight.rollout.vllm.server import ServerEngine

logger = logging.getLogger(__name__)

MAX_RESTARTS = 5
"""How often an engine that died is restarted."""


class ChildEngine(ServerEngine):
    """A server that the trainer starts itself, and restarts when it dies. It needs no saved weights, because the trainer sends them.

    Args:
        save: writes config and processor, but no weights, into a folder.
        engine_options: vLLM's engine arguments.
        log: a file for vLLM's output.
        calls: further arguments of `ServerEngine`.

    Raises:
        EngineError: the server did not start; the message ends with its last output.
    """

    def __init__(
        self, save: Callable[[Path], None], engine_options: Mapping[str, Any], *, log: Path, **calls: Any
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="boresight-vllm-")
        save(Path(self._folder.name))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._command = server_command(self._folder.name, _flags(port, engine_options))
        self._log = log
        self._restarts_left = 0  # no restart if the first start fails, since the next would fail as well
        self._server = Server(self._command, log=log)
        atexit.register(self._end)
        try:
            super().__init__(f"http://127.0.0.1:{port}", alive=self._is_there, **calls)
        except EngineError as error:
            self._end()
            raise EngineError(f"{error} {self._last_output()}") from error
        except BaseException:
            self._end()
            raise
        self._restarts_left = MAX_RESTARTS

    def _is_there(self) -> bool:
        """Whether the server runs. A dead one is restarted first, unless no restarts are left."""
        if self._server.is_alive():
            return True
        if not self._restarts_left:
            return False
        self._restarts_left -= 1
        logger.warning("%s has ended and is restarted. %s", self.where, self._last_output())
        self._server.close()
        self._server = Server(self._command, log=self._log)
        return True

    def _last_output(self, num_chars: int = 1000) -> str:
        output = self._log.read_text(errors="replace")[-num_chars:].strip() if self._log.exists() else ""
        return f"Its output is in {self._log} and ends with: {output or 'nothing'}"

    def close(self) -> None:
        super().close()
        self._end()

    def _end(self) -> None:
        atexit.unregister(self._end)
        self._server.close()
        self._folder.cleanup()


def _flags(port: int, engine_options: Mapping[str, Any]) -> Sequence[str]:
    flags = ["--host", "127.0.0.1", "--port", str(port), "--load-format", LOAD_FORMAT]
    if not torch.cuda.is_available():
        flags.append("--enforce-eager")
    for name, value in engine_options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not False:
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
