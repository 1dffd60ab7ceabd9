"""Shapes are checked under pytest only: beartype reads the jaxtyping annotations of the rooms that hold arithmetic, in those rooms' tests
and where every algorithm is trained. (Everywhere, it would take a fifth of the suite's time.)

And pages are opened in a real browser, where there is one (tests/browser.py).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import config as shapes
from jaxtyping import install_import_hook

from tests.browser import find_browser

install_import_hook(
    ["boresight.loss", "boresight.advantage", "boresight.model", "boresight.types"], "beartype.beartype"
)

SHAPED = ("tests/loss/", "tests/advantage/", "tests/model/", "tests/parity/", "tests/trainer/test_factorisation.py")
"""Tests under which shapes are checked."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    shapes.update("jaxtyping_disable", not item.nodeid.startswith(SHAPED))


# On a busy machine inputs take longer to make, which says nothing about the code.
PATIENT: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("random", **PATIENT)
settings.register_profile("repeated", derandomize=True, **PATIENT)
# The same inputs in every run, so that a change is judged by what it does; `make soak` draws others (--hypothesis-profile random).
settings.load_profile("repeated")


@pytest.fixture(scope="session", autouse=True)
def own_verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Layouts that this run verifies are kept for this run: a test may change what a model computes."""
    from boresight import verdicts  # after the import hook

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("verified")
        patch.setattr(verdicts, "folder", lambda: folder)
        yield


NO_BROWSER = "pages NOT tested: no chromium or google-chrome found (apt-get install chromium)"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--need-browser", action="store_true", help="fail, rather than skip, where no browser is found")


VLLM = ("tests/rollout/vllm/", "tests/surface/test_s8_s9_s10_vllm.py")
"""Tests that share engines, and so a worker."""
TOGETHER = ("tests/trainer/test_ranks.py", "tests/trainer/test_shards.py")
"""Modules whose fixtures take longer than their tests, which share a worker too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """`-m pages` is every test that opens a browser. What shares a worker comes first, so that no worker waits for it at the end."""
    items.sort(key=lambda item: (not item.nodeid.startswith(VLLM), not item.nodeid.startswith(TOGETHER)))
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.pages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a file's tests imported stays for good. Each trainer collects garbage, which takes a second if it looks through that too."""
    yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Each test goes to whichever worker is free, those that share something to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(VLLM):
                return "vllm"
            return nodeid.split("::")[0] if nodeid.startswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A headless browser, one for all tests of a module.

    Not one for the session: Playwright keeps an event loop running in this thread, in which tests of other modules could start none.
    """
    path = find_browser()
    if path is None:
        if request.config.getoption("--need-browser"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    pytest.importorskip("playwright", reason=NO_BROWSER)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in the last lines what was left untested: a green run must not be taken for more than it is."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_BROWSER in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{NO_BROWSER}; {len(skipped)} tests skipped", yellow=True)
