"""Answers that are formulas, by math-verify (the extra `math`)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import LogMetric, completion_text, final_answer, gold_answer, log_unparsed
from boresight.rewards.function import Failure
from boresight.rewards.latex import canonical_number, latex, looks_symbolic
from boresight.rewards.notation import SIGNS
from boresight.rewards.number import ANNOUNCED

if TYPE_CHECKING:
    from boresight.types import Conversation

PARSE_TIMEOUT_S = 10
VERIFY_TIMEOUT_S = 5
UNTIMED = 0

LogExtra = Callable[[str, list[str]], None]


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
    written = _written(gold_answer(text))
    return () if written is None else _parsed(written, units=not looks_symbolic(written))


def _parsed_answer(text: str, *, has_symbols: bool) -> tuple[Any, ...]:
    """The completion's answer as math-verify's expressions; empty where there is none.

    Args:
        has_symbols: whether the gold has variables: then letters behind a number are variables, too, and not its unit.
    """
    if "<answer>" not in text:
        return _parsed(text.translate(SIGNS), units=not has_symbols, announced=True)
    tagged = final_answer(text)
    written = _written(tagged)
    if written is None and (number := canonical_number(tagged)) is not None:
        written = f"${number}$"
    return () if written is None else _parsed(written, units=not has_symbols)


def _written(text: str) -> str | None:
    """The formula that a text is, or that it announces: "the answer is 5", ``#### 5``."""
    announced = ANNOUNCED.search(text)
    if announced and announced[0].startswith("####"):  # as GSM8K writes it, behind the working
        return latex(text[announced.end() :])
    written = latex(text)
    return latex(text[announced.end() :]) if written is None and announced else written


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
