"""Answer rewards verified on the gold answers before training: each must give full marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from boresight.errors import ConfigError
from boresight.rewards.function import RewardFunc, asked_for, is_async, unwrapped
from boresight.rewards.options import GOLD_TEMPLATE
from boresight.rewards.score import Scorer
from boresight.types import Completion, Group, Prompt

WRONG = "no such answer"
"""Takes the gold's place in the template: a reward that gives it full marks does not read the gold."""

MAX_NAMED = 10


@dataclass(slots=True)
class GoldCheck:
    """The marks of one answer reward for gold answers."""

    name: str
    num_rows: int = 0
    """Rows that it marked."""
    refused: list[tuple[int, str, float]] = field(default_factory=list)
    """Row, gold and mark where the gold gets less than 1."""
    blind: list[tuple[int, str]] = field(default_factory=list)
    """Row and gold where nonsense gets full marks too, mostly because the gold does not parse."""
    failed: int = 0

    @property
    def is_sound(self) -> bool:
        return not (self.refused or self.blind or self.failed)

    def __str__(self) -> str:
        if self.is_sound:
            return f"{self.name} gives full marks to all {self.num_rows} gold answers"
        parts = []
        if self.refused:
            shown = _named([f"row {row} ({gold!r}: {mark:g})" for row, gold, mark in self.refused])
            parts.append(f"does not give full marks to {len(self.refused)} of {self.num_rows} gold answers: {shown}")
        if self.blind:
            shown = _named([f"row {row} ({gold!r})" for row, gold in self.blind])
            parts.append(
                f"gives nonsense full marks too in {len(self.blind)} rows, whose gold it does not read: {shown}"
            )
        if self.failed:
            parts.append(f"failed on {self.failed} rows")
        return f"{self.name} " + "; it ".join(parts)


def check_gold(scorer: Scorer, prompts: Sequence[Prompt], template: str = GOLD_TEMPLATE) -> list[GoldCheck]:
    """Have every answer reward mark the gold of every row, and nonsense in its place.

    An answer reward is a sync function that names `solution`, or that uses math-verify. Others are not called: they do not mark the
    answer, and a served judge costs money.

    Args:
        prompts: those whose rows have a `solution` are tried.
        template: the completion, with `{solution}` in the gold's place.

    Raises:
        ConfigError: the template has no place for the gold.
    """
    if "{solution}" not in template:
        raise ConfigError(f"gold_template={template!r} has no place for the gold: write {{solution}} in it.")
    tried = [prompt for prompt in prompts if prompt.row.columns.get("solution") is not None]
    answering = scorer.only(reads_gold)
    if answering is None or not tried:
        return []
    golds = [str(prompt.row.columns["solution"]) for prompt in tried]
    right = [_answered(prompt, template.replace("{solution}", gold)) for prompt, gold in zip(tried, golds, strict=True)]
    wrong = [_answered(prompt, template.replace("{solution}", WRONG)) for prompt in tried]
    marks, nonsense = answering.score(right), answering.score(wrong)
    checks = []
    for column, name in enumerate(answering.names):
        check = GoldCheck(name, failed=int(marks.failed.sum()))
        for place in (~marks.values[:, column].isnan()).nonzero()[:, 0].tolist():
            check.num_rows += 1
            row, mark = tried[place].row.index, float(marks.values[place, column])
            if mark < 1:
                check.refused.append((row, golds[place], mark))
            elif float(nonsense.values[place, column]) >= 1:
                check.blind.append((row, golds[place]))
        checks.append(check)
    return checks


def _answered(prompt: Prompt, text: str) -> Group:
    """The prompt with a completion of this text and of no tokens."""
    ids = prompt.ids[:0]
    return Group(prompt, (Completion(ids, ids.bool(), text),))


def reads_gold(func: RewardFunc) -> bool:
    """Whether a function is an answer reward."""
    if is_async(func):
        return False
    if "solution" in asked_for(func):
        return True
    plain = unwrapped(func)
    used = getattr(getattr(plain, "__code__", None), "co_names", ())
    known = getattr(plain, "__globals__", {})
    return any(str(getattr(known.get(name), "__module__", "")).startswith("math_verify") for name in used)


def _named(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
    return ", ".join(items[:MAX_NAMED]) + more
