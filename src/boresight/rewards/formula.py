"""Answers that are formulas, by math-verify (the extra `math`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import LogMetric, completion_text, final_answer, log_unparsed

if TYPE_CHECKING:
    from boresight.types import Conversation

PARSE_TIMEOUT_S = 10
VERIFY_TIMEOUT_S = 5
UNTIMED = 0


def accuracy_reward(
    completions: Sequence[str | Conversation],
    solution: Sequence[str | None],
    log_extra: Callable[[str, list[str]], None] | None = None,
    log_metric: LogMetric | None = None,
    **columns: Any,
) -> list[float | None]:
    r"""1 where the completion's formula equals the solution mathematically, else 0; None where the solution is not a formula.

    The answer is read from ``<answer>…</answer>`` as the solution is read; where there are no tags it must be announced
    LaTeX (``\boxed{…}``, ``the answer is $…$``), as in TRL's `accuracy_reward`. The article's own function gives 1 to
    every completion where the solution does not parse, a plain word for instance: words are for `exact_answer_reward`.

    Raises:
        ConfigError: math-verify is not installed.
    """
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify  # here, because it is optional: the extra `math`
    except ImportError as error:
        raise ConfigError("accuracy_reward needs math-verify: pip install 'boresight[math]'") from error

    # math-verify times itself by signals, which only the main thread may set.
    timed = threading.current_thread() is threading.main_thread()
    parse_timeout_s, verify_timeout_s = (PARSE_TIMEOUT_S, VERIFY_TIMEOUT_S) if timed else (UNTIMED, UNTIMED)
    announced = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    rewards: list[float | None] = []
    shown: list[str | None] = []
    for completion, gold in zip(completions, solution, strict=True):
        text = completion_text(completion)
        gold_parsed = [] if gold is None else parse(gold, parsing_timeout=parse_timeout_s)
        if "<answer>" in text:
            answer_parsed = parse(final_answer(text), parsing_timeout=parse_timeout_s)
        else:
            answer_parsed = parse(text, [announced], extraction_mode="first_match", parsing_timeout=parse_timeout_s)
        equal = verify(gold_parsed, answer_parsed, timeout_seconds=verify_timeout_s) if gold_parsed else None
        rewards.append(None if equal is None else float(equal))
        shown.append(str(answer_parsed[0]) if answer_parsed else None)
    if log_extra is not None:
        log_extra("answer_parsed", [answer or "" for answer in shown])
    log_unparsed(log_metric, "accuracy_reward", shown, rewards)
    return rewards
