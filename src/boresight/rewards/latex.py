r"""Formulas as people write them, rewritten as math-verify reads them.

| written as | rewritten as |
|---|---|
| bare LaTeX, ``5 \sqrt { 2 }`` | ``$5 \sqrt { 2 }$``: without dollar signs math-verify reads the first number |
| a number, ``1,234 cm``, ``1 1/2``, ``1.5e3`` | ``$1234$``, ``$1.5$``, ``$1500$`` |
| Unicode, ``5√2``, ``x²``, ``2π``, ``−x`` | ``$5\sqrt{2}$``, ``$x^{2}$``, ``$2\pi$``, ``$-x$`` |
| words | nothing: they are no formula |
"""

from __future__ import annotations

import re
from fractions import Fraction

from boresight.rewards.notation import plain_signs, undelimited, without_markup
from boresight.rewards.number import NUMBER, quantities, spelled

DELIMITER = re.compile(r"\$|\\\(|\\\[|\\f?boxed\b")
FUNCTIONS = frozenset(
    [
        "sqrt",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "exp",
        "pi",
        "max",
        "min",
        "lim",
        "det",
        "mod",
        "inf",
    ]
)
JOINING = frozenset(["or", "and", "to", "of", "is", "in", "at", "by", "no", "yes", "not", "the", "an", "as", "it"])
"""Short words of prose, which are no products of variables."""

LONGEST_PRODUCT = 3
"""Letters in a row that may be variables (2ab); a longer run is a word."""

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]+")
_UNIT_WORDS = re.compile(r"(?:\s+[^\W\d_]{3,})+\s*$")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}")
_APPLIED = re.compile(r"\b(?:sin|cos|tan|log|ln|exp|sqrt)\b\s*\S")
_BARE_COMMAND = re.compile(r"(?<![\\A-Za-z])(pi|infty|sin|cos|tan|cot|arcsin|arccos|arctan|log|ln|exp)(?![A-Za-z])")
_ROOT = re.compile(r"(?:√|(?<![\\\w])sqrt)\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\w))")
_POWERS = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ]+")
_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "±": r"\pm ", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∪": r"\cup ", "∩": r"\cap ", "**": "^",
}  # fmt: skip


def latex(text: str) -> str | None:
    r"""The formula that the text is, between dollar signs; a text with formulas in it, as it is; None where it is neither.

    A number is written anew as digits or ``\frac``, whatever its unit, thousands separators and sign: math-verify reads ``1.5e3`` as 1.5
    and ``$1 1/2$`` as 1. Bare LaTeX gets dollar signs, without which math-verify reads the first number in it.
    """
    inner = undelimited(text)
    if (number := canonical_number(inner, whole=True)) is not None:
        return f"${number}$"
    written = _in_latex(plain_signs(inner))
    if DELIMITER.search(inner):
        return written
    if inner != text.strip().rstrip(".") and DELIMITER.search(text):  # the whole was between delimiters
        return f"${written}$"
    bare = _UNIT_WORDS.sub("", written)
    return f"${bare}$" if _is_formula(bare) else None


def _is_formula(text: str) -> bool:
    """Whether bare text is mathematics: it has digits, commands or operators, and no words."""
    bare = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", text))
    words = {word.lower() for word in _WORD.findall(bare)}
    if words & JOINING or text.strip().casefold() == "n/a":
        return False
    words -= FUNCTIONS
    if re.search(r"\d|∞", text) or _COMMAND.search(without_markup(text)) or _APPLIED.search(text):
        longest = LONGEST_PRODUCT if re.search(r"[=+*/^]|\d[A-Za-z]", text) else LONGEST_PRODUCT - 1
        return all(len(word) <= longest for word in words)
    return bool(re.search(r"[=+*/^<>|]|-", text)) and all(len(word) == 1 for word in words) and bool(words)


def _in_latex(text: str) -> str:
    """The text with mathematical characters as LaTeX commands."""
    text = _ROOT.sub(lambda match: rf"\sqrt{{{next(filter(None, match.groups()))}}}", text)
    text = _POWERS.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    return _BARE_COMMAND.sub(r"\\\1", text)


_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n")


def canonical_number(text: str, *, whole: bool = False) -> str | None:
    r"""The one number of the text as LaTeX without units: ``-3/4`` as ``-\frac{3}{4}``, ``12 %`` as ``12\%``. None where there is none.

    Args:
        whole: only where the text is a number and at most a unit: no further digits, operators or brackets.
    """
    found = list(quantities(text))
    if len(found) != 1 or found[0] is None:
        return None
    if whole:
        match = next(match for match in NUMBER.finditer(spelled(text)) if re.search(r"\d", match[0]))
        before, behind = spelled(text)[: match.start()].strip(), spelled(text)[match.end() :].strip()
        if before or not _is_unit(behind, attached=not spelled(text)[match.end() :].startswith(" ")):
            return None
    value = found[0].value
    sign = "-" if value < 0 else ""
    number = _decimal(abs(value))
    return f"{sign}{number}" + (r"\%" if found[0].percent else "")


def _is_unit(text: str, *, attached: bool) -> bool:
    """Whether what follows a number can be its unit. Two or three letters right behind it are variables (2ab), unless they are a unit."""
    if re.search(r"[\d=+*^<>|\\{}\[\](),;:!]", text):
        return False
    return not (attached and re.fullmatch(r"[a-z]{2,3}", text) and text not in ATTACHED_UNITS)


ATTACHED_UNITS = frozenset(
    [
        "mm",
        "cm",
        "dm",
        "km",
        "nm",
        "um",
        "mg",
        "kg",
        "ml",
        "cl",
        "dl",
        "ms",
        "ns",
        "us",
        "min",
        "hr",
        "hrs",
        "sec",
        "in",
        "ft",
        "yd",
        "mi",
        "lb",
        "lbs",
        "oz",
        "kwh",
        "mph",
        "kph",
        "pt",
        "px",
        "deg",
        "rad",
        "mol",
        "cal",
    ]
)


def _decimal(value: Fraction) -> str:
    """The value as digits where it has a finite decimal expansion, else as a fraction."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest != 1:
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = str((value * 10**places).numerator).rjust(places + 1, "0")
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits


def looks_symbolic(written: str) -> bool:
    r"""Whether letters behind a digit may be variables: math-verify would drop ``ab`` of ``2ab`` as if it were a unit."""
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}", " ", written))
    bare = re.sub(r"(?<=\S)\s+[msglhLNJWVKA]\s*\$?$", "", bare)  # a unit of one letter, behind a space
    return any(len(word) <= LONGEST_PRODUCT and word.lower() not in ATTACHED_UNITS for word in _WORD.findall(bare))
