"""Answers that are formulas, by math-verify (the extra `math`)."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import LogMetric, completion_text, final_answer, log_unparsed
from boresight.rewards.function import Failure
from boresight.rewards.notation import SIGNS, plain_signs, undelimited, without_markup
from boresight.rewards.number import ANNOUNCED, NUMBER, quantities, spelled

if TYPE_CHECKING:
    from boresight.types import Conversation

PARSE_TIMEOUT_S = 10
VERIFY_TIMEOUT_S = 5
UNTIMED = 0

LogExtra = Callable[[str, list[str]], None]

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


def accuracy_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[str | None],
    log_extra: LogExtra | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | Failure | None]:
    r"""1 where the completion's formula equals the solution mathematically, else 0; None where the solution is not a formula.

    A solution may be LaTeX with or without dollar signs, a number as `numeric_answer_reward` reads it, or boxed. The answer is read from
    ``<answer>…</answer>`` as the solution is read; where there are no tags it must be announced LaTeX (``\boxed{…}``, ``the answer is
    $…$``), as in TRL's `accuracy_reward`. A comparison that runs out of time is a `Failure`. The article's own function gives 1 to every
    completion where the solution does not parse, a plain word for instance: words are for `exact_answer_reward`.

    Raises:
        ConfigError: math-verify is not installed.
    """
    texts = [completion_text(completion) for completion in completions]
    return _marked(texts, solution, "accuracy_reward", log_extra, log_metric)


def reasoning_accuracy_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[str | None],
    reasoning_delimiters: Sequence[str] | None = None,
    log_extra: LogExtra | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | Failure | None]:
    r"""`accuracy_reward` of what follows the reasoning, and 0 where the reasoning does not end (TRL's `reasoning_accuracy_reward`).

    Args:
        completions: strings or conversations.
        solution: as for `accuracy_reward`.
        reasoning_delimiters: texts that end the reasoning, ``["</think>"]`` by default. The first of them that occurs counts, and the
            answer follows its last occurrence.

    Raises:
        ConfigError: math-verify is not installed.
    """
    delimiters = ["</think>"] if reasoning_delimiters is None else reasoning_delimiters
    answers = [_after_last(completion_text(completion), delimiters) for completion in completions]
    golds = [None if answer is None else gold for answer, gold in zip(answers, solution, strict=True)]
    marks = _marked([answer or "" for answer in answers], golds, "reasoning_accuracy_reward", log_extra, log_metric)
    return [0.0 if answer is None else mark for answer, mark in zip(answers, marks, strict=True)]


def _after_last(text: str, delimiters: Sequence[str]) -> str | None:
    found = next((delimiter for delimiter in delimiters if delimiter in text), None)
    return None if found is None else text.rpartition(found)[2]


def _marked(
    texts: Sequence[str],
    solution: Sequence[str | None],
    name: str,
    log_extra: LogExtra | None,
    log_metric: LogMetric | None,
) -> list[float | Failure | None]:
    _math_verify()
    rewards: list[float | Failure | None] = []
    shown: list[str | None] = []
    for text, solved in zip(texts, solution, strict=True):
        try:
            gold = () if solved is None else parsed_gold(str(solved))
            answer = _parsed_answer(text, has_symbols=_has_symbols(gold)) if gold else ()
            rewards.append(float(equal(gold, answer)) if gold else None)
        except TimeoutError as error:
            rewards.append(Failure(str(error)))
            answer = ()
        shown.append(str(answer[0]) if answer else None)
    if log_extra is not None:
        log_extra("answer_parsed", [answer or "" for answer in shown])
    log_unparsed(log_metric, name, shown, [None if isinstance(reward, Failure) else reward for reward in rewards])
    return rewards


# ---- Reading --------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)  # every completion of a group has the same gold
def parsed_gold(text: str) -> tuple[Any, ...]:
    """The solution as math-verify's expressions; empty where it is not a formula.

    Raises:
        TimeoutError: parsing took too long.
    """
    text = final_answer(text)
    announced = ANNOUNCED.search(text)
    if announced and announced[0].startswith("####"):  # as GSM8K writes it, behind the working
        text = text[announced.end() :]
    written = latex(text)
    if written is None and announced:
        written = latex(text[announced.end() :])
    return () if written is None else _parsed(written, units=not _looks_symbolic(written))


def _parsed_answer(text: str, *, has_symbols: bool) -> tuple[Any, ...]:
    """The completion's answer as math-verify's expressions; empty where there is none.

    Args:
        has_symbols: whether the gold has variables: then letters behind a number are variables, too, and not its unit.
    """
    if "<answer>" not in text:
        return _parsed(text.translate(SIGNS), units=not has_symbols, announced=True)
    tagged = final_answer(text)
    written = latex(tagged)
    if written is None:
        number = _canonical(tagged)
        written = None if number is None else f"${number}$"
    return () if written is None else _parsed(written, units=not has_symbols)


def latex(text: str) -> str | None:
    r"""The formula that the text is, between dollar signs; a text with formulas in it, as it is; None where it is neither.

    A number is written anew as digits or ``\frac``, whatever its unit, thousands separators and sign: math-verify reads ``1.5e3`` as 1.5
    and ``$1 1/2$`` as 1. Bare LaTeX gets dollar signs, without which math-verify reads the first number in it.
    """
    inner = undelimited(text)
    if (number := _canonical(inner, whole=True)) is not None:
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


def _canonical(text: str, *, whole: bool = False) -> str | None:
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


def _looks_symbolic(written: str) -> bool:
    r"""Whether letters behind a digit may be variables: math-verify would drop ``ab`` of ``2ab`` as if it were a unit."""
    bare = _COMMAND.sub(" ", re.sub(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}", " ", written))
    bare = re.sub(r"(?<=\S)\s+[msglhLNJWVKA]\s*\$?$", "", bare)  # a unit of one letter, behind a space
    return any(len(word) <= LONGEST_PRODUCT and word.lower() not in ATTACHED_UNITS for word in _WORD.findall(bare))


def _has_symbols(gold: Sequence[Any]) -> bool:
    return any(getattr(each, "free_symbols", None) for each in gold)


# ---- math-verify ----------------------------------------------------------------------------------------------------------------


def _math_verify() -> Any:
    try:
        import math_verify  # here, because it is optional (the extra `math`) and slow
    except ImportError as error:
        raise ConfigError("accuracy_reward needs math-verify: pip install 'boresight[math]'") from error
    return math_verify


@functools.cache
def _configs(units: bool, announced: bool) -> list[Any]:
    """What math-verify looks for. `announced` as TRL's rewards: LaTeX in a box, or behind "the answer is"."""
    from latex2sympy2_extended import NormalizationConfig

    library = _math_verify()
    if announced:
        return [
            library.LatexExtractionConfig(
                normalization_config=NormalizationConfig(units=units),
                boxed_match_priority=0,
                try_extract_without_anchor=False,
            )
        ]
    normalization = NormalizationConfig(basic_latex=True, units=units, malformed_operators=True, nits=True, boxed="all")
    return [library.LatexExtractionConfig(normalization_config=normalization)]


def _timeout(seconds: int) -> int:
    """math-verify times itself by signals, which only the main thread may set."""
    return seconds if threading.current_thread() is threading.main_thread() else UNTIMED


def _parsed(text: str, *, units: bool, announced: bool = False) -> tuple[Any, ...]:
    """math-verify's expressions of the text.

    Raises:
        TimeoutError: parsing took too long.
    """
    library = _math_verify()
    mode = "first_match" if announced else "any_match"
    try:
        return tuple(
            library.parse(
                text,
                _configs(units, announced),
                extraction_mode=mode,
                parsing_timeout=_timeout(PARSE_TIMEOUT_S),
                raise_on_error=True,
            )
        )
    except library.errors.TimeoutException:
        raise TimeoutError(f"parsing took longer than {PARSE_TIMEOUT_S} s: {text[:80]!r}") from None
    except Exception:  # whatever math-verify's parser raises: the text is no formula
        return ()


def equal(gold: Sequence[Any], answer: Sequence[Any]) -> bool:
    """Whether some reading of the answer equals some reading of the gold, by `math_verify.verify`.

    Raises:
        TimeoutError: a comparison took too long, and no other found them equal.
    """
    library = _math_verify()
    timed_out = False
    for one, other in product(gold, answer):
        try:
            if library.verify(one, other, timeout_seconds=_timeout(VERIFY_TIMEOUT_S), raise_on_error=True):
                return True
        except library.errors.TimeoutException:
            timed_out = True
        except Exception:  # whatever sympy raises: these two cannot be compared
            continue
    if timed_out:
        raise TimeoutError(f"comparing the answer with the solution took longer than {VERIFY_TIMEOUT_S} s")
    return False
