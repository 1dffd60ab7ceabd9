r"""The ways in which one answer is written: signs that look alike, LaTeX around plain text, boxes, fractions.

Pure functions from text to text. Each removes one kind of difference, and leaves text of other kinds as it is.
"""

from __future__ import annotations

import re
import unicodedata

_MINUS = dict.fromkeys("−–—‒‐‑﹣⁻", "-")
_SPACES = dict.fromkeys(
    "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
)
_FULL_WIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_QUOTES = {"‘": "'", "’": "'", "“": '"', "”": '"', "′": "'", "⁄": "/", "∕": "/", "÷": "/", "【": "[", "】": "]"}
SIGNS = str.maketrans(_FULL_WIDTH | _MINUS | _SPACES | _QUOTES)

VULGAR = re.compile("[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|operatorname|mbox|rm)\s*\{([^{}]*)\}"
)
PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
"""Delimiters around a whole answer."""

SPACING = re.compile(r"\\[,;:!> ]|\\quad|\\qquad|~|\\left|\\right|\\displaystyle")
GROUP = "{,}"
"""A comma that LaTeX does not space: the thousands separator."""


def plain_signs(text: str) -> str:
    """Typographic minus signs, spaces, quotes and full-width characters replaced by ASCII's; ``1½`` becomes ``1 1/2``."""
    text = VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    return text.translate(SIGNS)


def boxed(text: str) -> list[str]:
    r"""The contents of every ``\boxed{…}`` in order, braces inside them balanced. A box that is not closed ends with the text."""
    found: list[str] = []
    for match in BOX.finditer(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] == "{") - (text[end] == "}")
            end += 1
        found.append(text[match.end() : end - (depth == 0)])
    return found


def undelimited(text: str) -> str:
    r"""The text without what surrounds all of it: ``$…$``, ``\(…\)``, ``\[…\]``, ``\boxed{…}``, ``\text{…}``, ``**…**``, a full stop."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith((".", "。")) and not text.endswith(".."):
            text = text[:-1].rstrip()
        for left, right in PAIRS:
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and inner and left not in inner and right not in inner:
                text = inner
        for command in (BOX, re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{")):
            if (opened := command.match(text)) and _closes_at_end(text, opened.end()):
                text = text[opened.end() : -1]
    return text


def _closes_at_end(text: str, start: int) -> bool:
    """Whether the brace opened before `start` is closed by the last character of the text."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place == len(text) - 1
    return False


def without_markup(text: str) -> str:
    r"""The text without LaTeX's and Markdown's marks of style: ``\text{…}``, ``$``, ``**``, spacing commands, escaped ``%`` and ``$``."""
    text = plain_signs(text).replace(GROUP, ",")
    while (inner := TEXT.sub(r"\1", text)) != text:
        text = inner
    text = SPACING.sub(lambda match: "" if match[0] in ("\\!", "\\left", "\\right") else " ", text)
    text = re.sub(r"\\([%$#&_])", r"\1", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    return re.sub(r"\*\*|`", "", text)


def plain(text: str) -> str:
    """How texts are compared as words: outer delimiters and style removed, case folded, inner space made single."""
    return " ".join(undelimited(without_markup(undelimited(plain_signs(text)))).casefold().split())
