"""English number words as digits: ``twenty-one`` is 21, ``minus three and a half`` is -3 1/2, ``two thirds`` is 2/3.

| kind | written as |
|---|---|
| cardinals | ``zero`` … ``nineteen``, ``twenty-one``, ``one hundred and five``, ``two thousand``, ``a dozen``, ``twelve hundred`` |
| decimals | ``three point one four`` |
| fractions | ``half``, ``two thirds``, ``three and a half``, ``one and two thirds`` |
| sign | ``minus three``, ``negative three`` |

``one`` by itself counts where it can only be a number: at the start, or behind ``is``, ``are``, ``has``, ``exactly`` and the like. In
``the red one``, ``no one`` and ``one of them`` it is none, unless there are other numbers beside it. Not read are ordinals (``third``),
years as they are spoken (``nineteen eighty``) and other languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
UNITS = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), 2)
}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
DOZEN = 12
PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4, "fifth": 5, "fifths": 5,
    "sixth": 6, "sixths": 6, "seventh": 7, "sevenths": 7, "eighth": 8, "eighths": 8, "ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10,
    "hundredth": 100, "hundredths": 100,
}  # fmt: skip

_GAP = r"(?:\s*-\s*|\s+)"
_WORD = "|".join(sorted((*UNITS, *SCALES, "dozen"), key=len, reverse=True))
_RUN = (
    rf"(?:an?\s+(?=hundred|thousand|million|billion|trillion|dozen))?\b(?:{_WORD})\b(?:{_GAP}(?:and\s+)?(?:{_WORD})\b)*"
)
_PART = "|".join(sorted(PARTS, key=len, reverse=True))
_NOT_BEHIND = (
    "first|second|third|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen)th"
    "|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ieth|(?:hundred|thousand|million)th"
    "|hundreds|thousands|millions|billions|trillions|dozens"
)
_DIGITS = "|".join(_ONES.split()[:10])
_NUMBER = re.compile(
    rf"""
    (?P<sign>\b(?:minus|negative)\s+)?
    (?: (?P<run>(?>{_RUN}))
        (?: \s+point\s+(?P<decimals>(?:{_DIGITS})(?:{_GAP}(?:{_DIGITS}))*)\b
          | (?P<and_half>\s+and\s+a\s+half)\b
          | {_GAP}(?P<part>{_PART})\b
          | (?!{_GAP}(?:{_NOT_BEHIND})\b) )
      | (?P<half>\b(?:a\s+|one\s+)?half\b) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BEFORE_ONE = re.compile(
    r"(?:^|[:=(]|\b(?:is|are|was|were|has|have|contains?|shows?|exactly|only|just|answer|equals|see|count))[\s\"'*]*$",
    re.IGNORECASE,
)


def in_digits(text: str) -> str:
    """The text with its number words replaced by digits; words that make no one number (``two three``) by several."""
    is_alone = sum(1 for _ in _NUMBER.finditer(text)) == 1
    return _NUMBER.sub(lambda match: match[0] if is_alone and _is_pronoun(match, text) else _digits(match), text)


def _is_pronoun(match: re.Match[str], text: str) -> bool:
    """Whether a match is the word ``one`` where it may stand for a thing."""
    if match[0].lower() != "one":
        return False
    return not _BEFORE_ONE.search(text[: match.start()]) or re.match(r"\s+of\b", text[match.end() :]) is not None


def _digits(match: re.Match[str]) -> str:
    sign = "-" if match["sign"] else ""
    if match["half"]:
        return f"{sign}1/2"
    if match["part"]:
        is_ordinal = not match["part"].endswith("s") and not re.search(r"\bone$", match["run"], re.IGNORECASE)
        return match[0] if is_ordinal else sign + _fraction(match["run"], PARTS[match["part"].lower()])
    numbers = list(_numbers(_words(match["run"])))
    if len(numbers) > 1:
        return " , ".join(map(str, numbers))
    if match["and_half"]:
        return f"{sign}{numbers[0]} 1/2"
    if match["decimals"]:
        return f"{sign}{numbers[0]}." + "".join(str(UNITS[word]) for word in _words(match["decimals"]))
    return f"{sign}{numbers[0]}"


def _fraction(run: str, below: int) -> str:
    """Of ``two`` and 3, 2/3; of ``one and two`` and 3, 1 2/3."""
    whole, _, above = re.sub(r"[\s-]+", " ", run).rpartition(" and ")
    parts = [list(_numbers(_words(part))) for part in (whole, above) if part]
    if any(len(part) > 1 for part in parts):
        return " , ".join(str(number) for part in parts for number in part)
    return " ".join(str(part[0]) for part in parts) + f"/{below}"


def _words(run: str) -> list[str]:
    return [word for word in re.split(r"[\s-]+", run.lower()) if word not in ("and", "a", "an")]


def _numbers(words: Sequence[str]) -> Iterator[int]:
    """The numbers that a run of number words says; a new one begins where a word cannot go on with the last."""
    total, below, last = 0, None, None  # below: what stands under the next scale; last: the smallest scale so far
    for word in words:
        if word in UNITS:
            value = UNITS[word]
            fits = (
                below is None
                or (below >= 100 and below % 100 == 0)
                or (below % 100 >= 20 and below % 10 == 0 and 0 < value < 10)
            )
            if not fits:
                yield total + (below or 0)
                total, below, last = 0, None, None
            below = (below or 0) + value
        elif word == "hundred":
            if below is not None and not 0 < below < 100:
                yield total + below
                total, below, last = 0, None, None
            below = (below or 1) * SCALES[word]
        elif word == "dozen":
            below = (below or 1) * DOZEN
        else:
            scale = SCALES[word]
            if last is not None and scale >= last:
                yield total + (below or 0)
                total, below = 0, None
            total += (1 if below is None else below) * scale
            below, last = None, scale
    yield total + (below or 0)
