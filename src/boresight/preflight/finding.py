"""What a check before training found: one record for all checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
"""error: training fails, or teaches something else than it seems to; warning: probably not what was meant; note: a figure."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found."""

    check: str
    """The check, in one or two words."""
    level: Level
    where: str
    """The row or the option that it is about; empty where it is about all of them."""
    text: str
    """What is there, as a sentence."""
    way_out: str = ""
    """What to do about it, as a sentence. Errors and warnings have one."""

    def __str__(self) -> str:
        beginning = f"{self.where}: " if self.where else ""
        return f"{beginning}{self.text} {self.way_out}".rstrip()


def worst(findings: Iterable[Finding]) -> Level | None:
    """The highest level among some findings; None without any."""
    levels = {finding.level for finding in findings}
    return next((level for level in ("error", "warning", "note") if level in levels), None)
