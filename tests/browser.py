"""Opening a page as a reader does, and watching what it does beside showing itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

WIDE, PHONE = 1280, 390


def find_browser() -> str | None:
    """The first browser on the path that Playwright can drive."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@dataclass
class Opened:
    """A page in the browser, and all that it did which it should not."""

    page: Any
    requests: list[str] = field(default_factory=list)
    """Addresses asked for beside the page itself."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, dialogs."""

    @property
    def is_quiet(self) -> bool:
        return not self.requests and not self.complaints

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@contextmanager
def opened(
    chromium: Any,
    address: Path | str,
    *,
    width: int = WIDE,
    scheme: Literal["light", "dark"] = "light",
    own: Sequence[str] = (),
) -> Iterator[Opened]:
    """Open a file, or an address of this machine.

    Args:
        own: what else the page may ask for, relative to the address.
    """
    address = address.as_uri() if isinstance(address, Path) else address
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(30_000)
    seen = Opened(context.new_page())

    allowed = {address.partition("#")[0], *(address + path for path in own)}

    def ask(route: Any) -> None:
        if route.request.url.partition("#")[0] in allowed:
            route.continue_()
        else:
            seen.requests.append(route.request.url)
            route.abort()

    def listen(message: Any) -> None:
        if message.type in ("error", "warning"):
            seen.complaints.append(f"{message.type}: {message.text}")

    def dismiss(dialog: Any) -> None:
        seen.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    context.route("**/*", ask)
    seen.page.on("console", listen)
    seen.page.on("pageerror", lambda error: seen.complaints.append(f"exception: {error}"))
    seen.page.on("dialog", dismiss)
    try:
        seen.page.goto(address)
        yield seen
    finally:
        context.close()
