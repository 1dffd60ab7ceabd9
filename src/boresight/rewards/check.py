r"""Answer rewards verified on the gold answers before training.

A reward that reads gold and answer by one parser shares its misreadings: where ``5\sqrt{2}`` is read as 5 on both sides, every gold gets
full marks, and so does the wrong answer 5. So each gold is tried in three ways:

| tried | expected |
|---|---|
| the gold in the template | full marks |
| the gold written otherwise: in ``$…$``, boxed, with the other minus sign, in the other case | full marks |
| nonsense, and parts of the gold: one of its numbers, the gold without its minus | less |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from boresight.errors import ConfigError
from boresight.rewards.extract import gold_answer
from boresight.rewards.function import RewardFunc, asked_for, is_async, named, unwrapped
from boresight.rewards.latex import canonical_number
from boresight.rewards.notation import plain_signs, undelimited
from boresight.rewards.options import GOLD_TEMPLATE
from boresight.rewards.score import Scorer
from boresight.types import Completion, Group, Prompt

WRONG = "no such answer"
"""Takes the gold's place in the template: a reward that gives it full marks does not read the gold."""

VARIED_GOLDS = 64
"""Different golds that are written otherwise and cut into parts; the rest is only scored as it is."""

Named = tuple[int, str]
"""A row, and a gold or what was tried in its place."""


@dataclass(slots=True)
class GoldCheck:
    """The marks of one answer reward for gold answers."""

    name: str
    num_golds: int = 0
    """Rows with a gold."""
    num_rows: int = 0
    """Rows that it marked; to the others it does not apply."""
    left_out: list[Named] = field(default_factory=list)
    """Row and gold where it does not apply."""
    refused: list[tuple[int, str, float]] = field(default_factory=list)
    """Row, gold and mark where the gold gets less than 1."""
    blind: list[Named] = field(default_factory=list)
    """Row and gold where nonsense gets full marks too, mostly because the gold does not parse."""
    partial: list[tuple[int, str, str]] = field(default_factory=list)
    """Row, gold and a part of it that gets full marks, too."""
    rewritten: list[Named] = field(default_factory=list)
    """Row and a way of writing its gold that gets less than 1."""
    failed: int = 0
    reads_notation: bool = True
    """Whether it claims to know ways of writing: a built-in reward, or one that uses math-verify. Of others, `rewritten` is only a note."""

    @property
    def is_sound(self) -> bool:
        faults = self.refused or self.blind or self.partial or self.failed or (self.rewritten and self.reads_notation)
        return not faults and self.num_rows > 0

    def __str__(self) -> str:
        if self.num_golds == 0:
            return f"{self.name} applies to none of the rows: they have no solution"
        if self.num_rows == 0 and not self.failed:
            return (
                f"{self.name} applies to none of the {self.num_golds} gold answers ({_golds(self.left_out)}): use a reward for answers of "
                "this kind"
            )
        parts = [self._marks()] if self.num_rows else []
        if self.blind:
            parts.append(
                f"gives nonsense full marks too in {len(self.blind)} rows, whose gold it does not read: {_golds(self.blind)}"
            )
        if self.partial:
            shown = named([f"row {row} ({gold!r}: {part!r} is enough)" for row, gold, part in self.partial])
            parts.append(f"reads only a part of {len(self.partial)} gold answers: {shown}")
        if self.rewritten:
            parts.append(f"gives less to {len(self.rewritten)} of them written otherwise: {_golds(self.rewritten)}")
        if self.failed:
            parts.append(f"failed on {self.failed} rows")
        if self.left_out:
            parts.append(f"does not apply to {len(self.left_out)} of {self.num_golds} rows: {_golds(self.left_out)}")
        return f"{self.name} " + "; it ".join(parts)

    def _marks(self) -> str:
        if not self.refused:
            return f"gives full marks to all {self.num_rows} gold answers"
        shown = named([f"row {row} ({gold!r}: {mark:g})" for row, gold, mark in self.refused])
        return f"does not give full marks to {len(self.refused)} of {self.num_rows} gold answers: {shown}"


def check_gold(scorer: Scorer, prompts: Sequence[Prompt], template: str = GOLD_TEMPLATE) -> list[GoldCheck]:
    """Have every answer reward mark the gold of every row, other ways of writing it, parts of it, and nonsense.

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
    answering = scorer.only(reads_gold)
    if answering is None or not prompts:
        return []
    tried = [prompt for prompt in prompts if prompt.row.columns.get("solution") is not None]
    golds = [str(prompt.row.columns["solution"]) for prompt in tried]
    checks = [
        GoldCheck(name, num_golds=len(golds), reads_notation=reads_notation(func))
        for name, func in zip(answering.names, answering.funcs, strict=True)
    ]
    if not tried:
        return [check for check, func in zip(checks, answering.funcs, strict=True) if "solution" in asked_for(func)]
    trials = _Trials(answering, template)
    right, num_failed = trials.marks([(prompt, gold_answer(gold)) for prompt, gold in zip(tried, golds, strict=True)])
    wrong, _ = trials.marks([(prompt, WRONG) for prompt in tried])
    for column, check in enumerate(checks):
        check.failed = num_failed[column]
        for prompt, gold, mark, nonsense in zip(tried, golds, right, wrong, strict=True):
            _note(check, prompt.row.index, gold, mark[column], nonsense[column])
    _vary(checks, trials, tried, golds)
    return checks


def _note(check: GoldCheck, row: int, gold: str, mark: float, nonsense: float) -> None:
    if mark != mark:  # NaN: it does not apply, or failed
        if not check.failed:
            check.left_out.append((row, gold))
        return
    check.num_rows += 1
    if mark < 1:
        check.refused.append((row, gold, mark))
    elif nonsense >= 1:
        check.blind.append((row, gold))


def _vary(checks: Sequence[GoldCheck], trials: _Trials, tried: Sequence[Prompt], golds: Sequence[str]) -> None:
    """Note which golds lose their marks written otherwise, and which keep them in part."""
    distinct = list(dict(zip(golds, tried, strict=True)).items())[:VARIED_GOLDS]
    others = [(prompt, gold, text, True) for gold, prompt in distinct for text in rewritten(gold_answer(gold))]
    others += [(prompt, gold, text, False) for gold, prompt in distinct for text in parts_of(gold_answer(gold))]
    if not others:
        return
    marks, _ = trials.marks([(prompt, text) for prompt, _, text, _ in others])
    for column, check in enumerate(checks):
        known = {row for row, *_ in (*check.refused, *check.blind, *check.left_out)}
        for (prompt, gold, text, is_same), mark in zip(others, marks, strict=True):
            row = prompt.row.index
            if row in known:
                continue
            if is_same and mark[column] < 1:
                check.rewritten.append((row, text))
            elif not is_same and mark[column] >= 1 and row not in {each for each, *_ in check.partial}:
                check.partial.append((row, gold, text))


@dataclass(frozen=True, slots=True)
class _Trials:
    scorer: Scorer
    template: str

    def marks(self, answers: Sequence[tuple[Prompt, str]]) -> tuple[list[list[float]], list[int]]:
        """[answers][functions] marks, NaN where there is none; and on how many answers each function failed."""
        table = self.scorer.score(
            [_answered(prompt, self.template.replace("{solution}", text)) for prompt, text in answers]
        )
        shares = [table.metrics[f"rewards/{name}/failed"][0] for name in table.names]
        return table.values.tolist(), [round(share * len(answers)) for share in shares]


def _answered(prompt: Prompt, text: str) -> Group:
    """The prompt with a completion of this text and of no tokens."""
    ids = prompt.ids[:0]
    return Group(prompt, (Completion(ids, ids.bool(), text),))


# ---- Other ways of writing, and parts -------------------------------------------------------------------------------------------


def rewritten(gold: str) -> Iterator[str]:
    r"""The same answer written otherwise: in ``$…$`` and boxed where it has digits or commands; with the other minus; in the other case
    where it is words or a letter."""
    core = undelimited(gold)
    if not core or re.search(r"\$|\\boxed|\\\(|\\\[|####|\banswer\b", core):
        return
    is_maths = re.search(r"\d|\\[A-Za-z]", core) and not re.search(r"[^\W\d_]{4,}", re.sub(r"\\[A-Za-z]+", " ", core))
    minuses = re.search("[−–]", core)
    forms = [f"${core}$", rf"\boxed{{{core}}}"] if is_maths else []
    forms += [rf"\boxed{{{core}}}"] if re.fullmatch(r"\W*[A-Za-z]\W*", core) else []
    forms += [re.sub("[−–]", "-", core)] if minuses else [core.replace("-", "−")] if is_maths and "-" in core else []
    forms += [core.swapcase()] if all(char.isalpha() or char in " -()." for char in core) else []
    yield from (form for form in dict.fromkeys(forms) if form != gold)


def parts_of(gold: str) -> Iterator[str]:
    """Answers that are a part of the gold, and wrong: its numbers, unless it is one number with a unit; and it without its minus."""
    core = plain_signs(undelimited(gold))
    if "=" in core or re.search(r"\\boxed|\$", core):  # of x = 5, 5 is the whole answer
        return
    unsigned = re.sub(r"^\s*-\s*", "", core)
    if unsigned != core and re.search(r"\d", core):
        yield unsigned
    if canonical_number(core, whole=True) is None and (re.search(r"\\[A-Za-z]|[√π^*/+]|\d\s*[-+]", core) is not None):
        yield from dict.fromkeys(re.findall(r"\d+(?:\.\d+)?", core))


# ---- Which functions ------------------------------------------------------------------------------------------------------------


def reads_gold(func: RewardFunc) -> bool:
    """Whether a function is an answer reward."""
    return not is_async(func) and ("solution" in asked_for(func) or _uses_math_verify(func))


def reads_notation(func: RewardFunc) -> bool:
    """Whether a function claims to know ways of writing: a built-in answer reward, or one that uses math-verify."""
    module: Any = getattr(unwrapped(func), "__module__", "")
    return str(module).startswith("boresight.rewards.") or _uses_math_verify(func)


def _uses_math_verify(func: RewardFunc) -> bool:
    plain = unwrapped(func)
    used = getattr(getattr(plain, "__code__", None), "co_names", ())
    known = getattr(plain, "__globals__", {})
    return any(str(getattr(known.get(name), "__module__", "")).startswith("math_verify") for name in used)


def _golds(golds: Sequence[Named]) -> str:
    return named([f"row {row} ({gold!r})" for row, gold in golds])
