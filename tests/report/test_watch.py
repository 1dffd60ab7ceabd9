from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from boresight.errors import ConfigError, DataError
from boresight.report.jsonl import StepLines
from boresight.report.watch import serve
from tests.browser import opened
from tests.report.runs import write_run


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of a run with one log line and no completions yet."""
    StepLines(tmp_path / "metrics.jsonl").add(1, {"loss": 1.0})
    with serve(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def ask(address: str, path: str = "", host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address + path, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_only_this_machine_is_answered_and_only_the_page(address: str) -> None:
    port = address.rstrip("/").rpartition(":")[2]
    assert ask(address)[0] == ask(address, host=f"localhost:{port}")[0] == 200
    assert ask(address, host=f"evil.example:{port}")[0] == ask(address, "data", host=f"evil.example:{port}")[0] == 403
    assert ask(address, "../metrics.jsonl")[0] == ask(address, "report.html")[0] == 404
    # Bound to the loopback address: no other address of this machine is served.
    assert address.startswith("http://127.0.0.1:")


def test_the_version_changes_when_the_run_goes_on(address: str, tmp_path: Path) -> None:
    before = ask(address, "version")
    assert ask(address, "version") == before
    StepLines(tmp_path / "metrics.jsonl").add(2, {"loss": 0.5})
    assert ask(address, "version") != before


def test_the_page_follows_the_run_and_outlives_the_server(tmp_path: Path, chromium: Any) -> None:
    StepLines(tmp_path / "metrics.jsonl").add(1, {"loss": 1.0})
    with serve(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        with opened(chromium, address, own=("version", "data")) as seen:
            page = seen.page
            assert page.locator("#count").inner_text() == "No completions yet."
            write_run(tmp_path, num_steps=2)
            page.locator("#count", has_text="4 of 4 groups").wait_for()
            assert page.locator("#facts dd").first.inner_text() == "2"
            page.locator("#filters [name=text]").fill("prompt 1 at step 1")
            page.locator("#count", has_text="1 of 4 groups").wait_for()
            write_run(tmp_path, num_steps=3)
            # What the reader has chosen stays as it is.
            page.locator("#count", has_text="1 of 6 groups").wait_for()
            assert "step 1 · training · row 101" in page.locator("#detail").inner_text()
            page.locator("#detail button.image img").first.wait_for()
            assert seen.is_quiet, (seen.complaints, seen.requests)
            server.shutdown()
            thread.join()
            server.server_close()
            page.locator("body.alone").wait_for()


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        serve(tmp_path)
    StepLines(tmp_path / "metrics.jsonl").add(1, {"loss": 1.0})
    with serve(tmp_path) as server, pytest.raises(ConfigError, match=f"--port {server.server_port} cannot be served"):
        serve(tmp_path, port=server.server_port)
