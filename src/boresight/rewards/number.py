r"""Answers that are one number, however it is written.

| kind | written as |
|---|---|
| sign | ``-5``, ``−5`` (typographic) |
| thousands | ``1,234``, ``1 234``, ``1'234``, ``1{,}234`` |
| decimals, powers | ``.5``, ``2e3``, ``2×10^3``, ``2 \times 10^{3}``, ``10^3`` |
| fractions | ``3/4``, ``\frac{3}{4}``, ``½``, ``1 1/2``, ``1\frac{1}{2}`` |
| percent | ``12%``, ``12\%``, ``12 percent`` |
| scale | ``5 million`` |
| units, currency | ``5 cm``, ``25°``, ``5 \text{ cm}^2``, ``$5``: not compared |
| words | ``three``, ``twenty-one``, ``two thirds`` (`number_words`), where the answer has no digits |
| decimal comma | ``3,5``, ``0,125``, ``1.234,5``, ``1 234,5`` |

A comma before exactly three digits separates thousands (``1,234``), unless ``0`` stands before it or a point or a space separates thousands
already; before any other number of digits it is a decimal comma. A single point is always a decimal point: ``1.234`` is 1.234, and
``1.234.567`` is 1234567. Two numbers in brackets, ``(3,5)``, and three with commas, ``3,5,7``, are a list, and so no number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import LogMetric, completion_text, final_answer, gold_answer, log_unparsed
from boresight.rewards.function import RewardFunc, with_options
from boresight.rewards.notation import boxed, without_markup
from boresight.rewards.number_words import in_digits

if TYPE_CHECKING:
    from boresight.types import Conversation

SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LARGEST_POWER = 300
"""Of ten; a float holds no more."""

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([^{}]*?)\s*\}|(\d))\s*(?:\{\s*([^{}]*?)\s*\}|(\d))")
_POWER = re.compile(r"(?<=[\d.])\s*(?:×|·|\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))")
_POWER_ALONE = re.compile(r"(?<![\w.^])10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))")
_SUPERSCRIPTS = re.compile("(?<=10)[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_UNIT_POWER = re.compile(r"(?<=[A-Za-zµμΩ])\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d+)")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|\\circ")

NUMBER = re.compile(
    r"""
    (?<![\w.])
    (?P<sign>[-+]\s*)?
    [$€£¥₹]?
    (?P<whole>\d{1,3}(?:,\d{3})+|\d{1,3}(?:'\d{3})+|\d{1,3}(?:[ ]\d{3})+(?![\d/])|\d+)?
    (?P<decimals>\.\d+|\.(?=\s|$)|(?<=\d))
    (?:[eE](?P<power>[-+]?\d+)(?!\w))?
    (?: \s*/\s*(?P<denominator>\d+(?:\.\d+)?)
      | \s+(?P<part>\d+)\s*/\s*(?P<parts>\d+) )?
    (?: \s*(?P<percent>%|\b(?:percent|pct|per\s+cent)\b) | \s*(?P<scale>\b(?:thousand|million|billion|trillion)\b) )?
    """,
    re.VERBOSE,
)
ANNOUNCED = re.compile(
    r"(?:\banswers?\b[\"'*]*(?:\s+is\b|\s*[:=])|####|答案\s*(?:是|為|为|:|=))\s*(?:[A-Za-z]\w*\s*=\s*)?", re.IGNORECASE
)


_MATHS_BEFORE = re.compile(
    r"(?:\\(?!(?:approx|sim|simeq|cdot|times|leq?|geq?|to|(?:R|r)ightarrow|mu|Omega)\b)[A-Za-z]+|[√∛/^]|\b(?:sqrt|sin|cos|tan|log|ln|exp))"
    r"\s*[\[({]*\s*$"
)
_MATHS_BEHIND = re.compile(r"[xyzn]\b|\s*(?:\\(?:sqrt|pi|frac|cdot|times|pm|div)\b|[√∛π∞^×·*+]|sqrt\b|pi\b)")
"""Around a number that is only a part of a formula, and so has no value of its own: the 2 of √2 and of 2π."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it is written."""

    value: Fraction
    """Without its unit; of 12 %, 12."""
    percent: bool = False

    def __float__(self) -> float:
        return float(self.value)

    def distance(self, other: Quantity) -> float:
        """|self − other|. Where one alone is written in percent, the smaller of both readings: 12 % is 12, and is 0.12."""
        apart = abs(self.value - other.value)
        if self.percent != other.percent:
            as_share = abs(self._share - other._share)
            apart = min(apart, as_share)
        return float(apart)

    @property
    def _share(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


def spelled(text: str) -> str:
    """The text with numbers spelled as `NUMBER` reads them: LaTeX, powers of ten and exponents of units rewritten."""
    text = _SUPERSCRIPTS.sub(lambda match: "^" + match[0].translate(_DIGITS), text)
    text = without_markup(text)
    text = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", text)
    text = _DEGREES.sub("°", text)
    text = _POWER.sub(lambda match: f"e{match[1] or match[2]}", text)
    text = _POWER_ALONE.sub(lambda match: f"1e{match[1] or match[2]}", text)
    text = _UNIT_POWER.sub("", text)
    text = re.sub(
        r"\$(?!\s*[\d.])", " ", text
    )  # a dollar sign before a number may be a currency or LaTeX's: both may go
    return re.sub(r"-\s+(?=[\d.$])", "-", re.sub(r"\$", "", text))


_COMMA = re.compile(
    r"(?<![\w.,])(?P<whole>\d{1,3}(?:\.\d{3})+|\d{1,3}(?:[ ]\d{3})+|\d{1,3}(?:'\d{3})+|\d+),(?P<decimals>\d+)(?!\d|[.,]\d)"
)
_POINTS = re.compile(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]*\d)")


def with_decimal_points(text: str) -> str:
    """The text with decimal commas as points, and without the points that separate thousands; lists of numbers are left as they are."""

    def changed(match: re.Match[str]) -> str:
        whole, decimals = match["whole"], match["decimals"]
        is_thousands = len(decimals) == 3 and whole.isdigit() and len(whole) <= 3 and not whole.startswith("0")
        before, behind = text[: match.start()].rstrip(), text[match.end() :].lstrip()
        is_listed = before.endswith(("(", "[", "{")) and re.match(r"\\?[)\]}]", behind)
        return match[0] if is_thousands or is_listed else re.sub(r"[. ']", "", whole) + "." + decimals

    return _POINTS.sub(lambda match: match[0].replace(".", ""), _COMMA.sub(changed, text))


_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


_HEDGE = re.compile(r"\s*[^\w\s]?\s*(?:\bor\b|\band\b|\bto\b|,|或|和|~)\s*[-+$]?\.?\d")
"""Behind an announced number, a second one: 3 or 4."""


def quantities(text: str) -> Iterator[Quantity | None]:
    """Every number in the text in order; None for one that has no value (1/0), or is only a part of a formula (the 2 of √2)."""
    text = spelled(text)
    for match in NUMBER.finditer(text):
        if match["whole"] is not None or len(match["decimals"]) > 1:
            is_part = _MATHS_BEFORE.search(text[: match.start()]) or _MATHS_BEHIND.match(text, match.end())
            yield None if is_part else _quantity(match)


def _quantity(match: re.Match[str]) -> Quantity | None:
    digits, power = re.sub(r"[,' ]", "", match["whole"] or "0"), int(match["power"] or 0)
    below, parts = Fraction(match["denominator"] or 1), Fraction(match["parts"] or 1)
    if abs(power) > LARGEST_POWER or below == 0 or parts == 0:
        return None
    value = Fraction(digits + match["decimals"].rstrip(".")) * Fraction(10) ** power
    value = (value / below + Fraction(match["part"] or 0) / parts) * SCALES.get(match["scale"] or "", 1)
    return Quantity(-value if "-" in (match["sign"] or "") else value, match["percent"] is not None)


def stated_quantity(text: str) -> Quantity | None:
    r"""The one number that the text states; None where it states none, or several.

    Where ``\boxed{…}`` stands, the number is read from it. Of several numbers, one announced by "the answer is" or "answer:" counts.
    """
    marked = boxed(text)
    if marked:
        return _one([_one(list(quantities(_in_plain_digits(each)))) for each in marked])
    text = _in_plain_digits(text)
    found = list(quantities(text))
    if (only := _one(found)) is not None or len(found) < 2:
        return only
    return _one([_first(text[place.end() :].partition("\n")[0]) for place in ANNOUNCED.finditer(text)])


def _in_plain_digits(text: str) -> str:
    """The text as `spelled`, with decimal points; number words count where no digit stands."""
    text = spelled(text)
    return with_decimal_points(text) if re.search(r"\d", text) else in_digits(text)


def _first(text: str) -> Quantity | None:
    """The number that an announcement is followed by; None where an alternative follows it."""
    match = next((match for match in NUMBER.finditer(text) if match[0].strip()), None)
    return None if match is None or _HEDGE.match(text, match.end()) else next(quantities(text), None)


def _one(found: Sequence[Quantity | None]) -> Quantity | None:
    """The number of a list that holds it alone, however often."""
    return found[0] if found and all(each == found[0] for each in found) else None


def stated_number(text: str) -> float | None:
    """The value of `stated_quantity`, without its unit: of 12 %, 12."""
    found = stated_quantity(text)
    return None if found is None else float(found)


def numeric_answer_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[Any],
    log_metric: LogMetric | None = None,
    *,
    tolerance: float = 1e-6,
    **columns: Any,
) -> list[float | None]:
    """1 where the answer's one number lies within `tolerance` of the solution's, else 0; None where the solution has no number.

    Read from ``<answer>…</answer>``, or from what follows the reasoning where there are no tags. Units are not compared. Where one of the
    two alone is in percent, 12 % equals both 12 and 0.12.

    Args:
        completions: strings or conversations.
        solution: a number, or a text with one number.
        tolerance: the largest |answer − solution| that counts, in the solution's unit;
            `get_numeric_answer_reward` sets it.
    """
    golds = [None if gold is None else stated_quantity(gold_answer(gold)) for gold in solution]
    answers = [stated_quantity(final_answer(completion_text(completion))) for completion in completions]
    log_unparsed(log_metric, "numeric_answer_reward", answers, golds)
    return [
        None if gold is None else float(answer is not None and answer.distance(gold) <= tolerance)
        for answer, gold in zip(answers, golds, strict=True)
    ]


def get_numeric_answer_reward(tolerance: float) -> RewardFunc:
    """`numeric_answer_reward` with another tolerance.

    Raises:
        ConfigError: a negative tolerance.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance must not be negative, and is {tolerance}.")
    return with_options(numeric_answer_reward, tolerance=tolerance)
