"""The project's Markdown, and the blocks of code on it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])

MARKER = re.compile(r"^<!-- not run: (.+) -->$")
"""Stands on the line above a block that cannot run on a laptop, with the reason. Such a block is only parsed."""

FENCE = re.compile(r"^( *)```(\w*)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """Of its first line of code, counted from 1."""
    language: str
    text: str
    not_run: str | None
    """Why it cannot run here."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The page's fenced blocks in order."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        if opened := FENCE.match(lines[number]):
            indent, first = len(opened[1]), number + 1
            end = next(n for n in range(first, len(lines)) if lines[n].strip() == "```")
            marker = MARKER.match(lines[number - 1].strip()) if number else None
            text = "\n".join(line[indent:] for line in lines[first:end])
            found.append(Block(page, first + 1, opened[2], text, marker and marker[1]))
            number = end
        number += 1
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as the shell splits them, continued lines joined, comments and here-documents left out."""
    text = re.sub(r"<<'(\w+)'.*?^\1$", "", block.text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))
