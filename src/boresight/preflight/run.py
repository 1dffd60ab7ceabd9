"""All checks, in the order in which their findings are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from boresight.errors import ConfigError, DiskError
from boresight.preflight.context import check_context
from boresight.preflight.disk import check_disk
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp
from boresight.preflight.template import check_template
from boresight.preflight.trained_parts import check_trained_parts
from boresight.preflight.vocabulary import check_vocabulary

CHECKS: Mapping[str, Callable[[SetUp], Iterator[Finding]]] = {
    "disk": check_disk,
    "vocabulary": check_vocabulary,
    "template": check_template,
    "trained parts": check_trained_parts,
    "context": check_context,
}
"""Name → check."""


def preflight(set_up: SetUp) -> list[Finding]:
    """What all checks find about a set-up."""
    return [finding for check in CHECKS.values() for finding in check(set_up)]


def report(findings: Sequence[Finding], say: Callable[[str], None]) -> None:
    """Print warnings, and raise errors.

    Args:
        say: prints a line.

    Raises:
        ConfigError: there are errors; the message lists them. It is a DiskError if the first is about the disk.
    """
    for finding in findings:
        if finding.level == "warning":
            say(str(finding))
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        kind = DiskError if errors[0].check == "disk" else ConfigError
        raise kind("\n".join(["The check before training (preflight='off' leaves it out) found:", *map(str, errors)]))
