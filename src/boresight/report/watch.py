"""The live page of a run, served on this machine alone."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from boresight.errors import ConfigError
from boresight.report.page import MAX_COMPLETIONS, report_data, report_page
from boresight.report.run import KEPT

LOOPBACK = "127.0.0.1"


def watch(
    run: str | os.PathLike[str],
    *,
    port: int = 0,
    max_completions: int = MAX_COMPLETIONS,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page of a run until interrupted.

    Args:
        run: the run folder.
        port: 0 takes any free one.
        max_completions: the most in the page.
        say: called with the address once the server answers.

    Raises:
        DataError: the folder holds no file of a run.
        ConfigError: the port is taken.
    """
    with serve(run, port=port, max_completions=max_completions) as server:
        say(f"http://{LOOPBACK}:{server.server_port}/")
        server.serve_forever()


def serve(run: str | os.PathLike[str], *, port: int = 0, max_completions: int = MAX_COMPLETIONS) -> ThreadingHTTPServer:
    """A server of the page, bound to the loopback address and not yet running.

    `/` is the page, `/data` its data, and `/version` a text that changes with the run's files.
    """
    source = _Source(Path(run), max_completions)
    source.data()  # A folder that is not a run is refused before anything is served.

    class Handler(_Handler):
        pages = source

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"--port {port} cannot be served: {error.strerror}. Name another, or leave it out."
        ) from error
    server.daemon_threads = True
    return server


class _Source:
    """A run's page data, read again when its files have changed."""

    def __init__(self, run: Path, max_completions: int) -> None:
        self.run = run
        self.max_completions = max_completions
        self._lock = threading.Lock()
        self._version: str | None = None
        self._data: dict[str, Any] = {}

    def version(self) -> str:
        """Changes whenever a file of the run does."""
        files = [path for name in KEPT for path in (self.run / name, *sorted((self.run / name).glob("step_*")))]
        files += self.run.glob("checkpoint-*/trainer_state.json")
        stamps = [(path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.exists()]
        return f"{len(stamps)}-{max(stamps, default=(0, 0))[0]}-{sum(size for _, size in stamps)}"

    def data(self) -> dict[str, Any]:
        with self._lock:
            version = self.version()
            if version != self._version:
                # The version is taken first: what is written while we read is read again the next time.
                self._data = report_data(self.run, max_completions=self.max_completions) | {"version": version}
                self._version = version
            return self._data


class _Handler(BaseHTTPRequestHandler):
    pages: _Source

    def do_GET(self) -> None:
        """Serve the page's three addresses."""
        # Another site may point a host name of its own at a loopback port (DNS rebinding): only local names are served.
        if self.headers.get("Host", "").rpartition(":")[0] not in (LOOPBACK, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._answer(report_page(self.pages.data(), watch=True), "text/html")
        elif self.path == "/version":
            self._answer(self.pages.version(), "text/plain")
        elif self.path == "/data":
            self._answer(json.dumps(self.pages.data(), allow_nan=False), "application/json")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, text: str, kind: str) -> None:
        content = text.encode(errors="replace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing, so that the address stays visible in the terminal."""
