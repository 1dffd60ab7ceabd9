"""Right answers of rows, and the answers that completions give, for those who read a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from boresight.report.answers import plain
from boresight.report.completions import AnswerPair
from boresight.rewards.extract import final_answer, gold_answer
from boresight.types import Group, Row


def right_answer(row: Row) -> str | None:
    """The right answer of a row (column `solution`), without reasoning and tags; None without one."""
    gold = row.columns.get("solution")
    return None if gold is None or gold == "" else gold_answer(gold).strip()


def answers_beside(groups: Sequence[Group]) -> list[AnswerPair] | None:
    """What every completion answered and the right answer of its row, as `CompletionStore.add` takes them; None where no row has one."""
    right = [right_answer(group.prompt.row) for group in groups]
    if all(each is None for each in right):
        return None
    return [
        (final_answer(completion.text).strip(), own)
        for own, group in zip(right, groups, strict=True)
        for completion in group.completions
    ]


def answer_shares(groups: Sequence[Group]) -> dict[str, float]:
    """How varied this rank's completions and their answers are, beside the right answers of their rows (column `solution`).

    An answer is what stands in the answer tags, or all after the reasoning; case and white space do not count.
    """
    repeats, rivals = 0, 0
    for group in groups:
        repeats += len(group) - len({tuple(completion.ids.tolist()) for completion in group.completions})
        rivals += len(group) - 1
    found = {"completions/frac_repeated": repeats / rivals} if rivals else {}
    solutions = [plain(gold) for group in groups if (gold := right_answer(group.prompt.row)) is not None]
    answers = Counter(plain(final_answer(completion.text)) for group in groups for completion in group.completions)
    del answers[""]
    if len(solutions) > 1:
        num_completions = sum(map(len, groups))
        found["completions/frac_commonest_answer"] = max(answers.values(), default=0) / num_completions
        found["completions/frac_commonest_solution"] = max(Counter(solutions).values()) / len(solutions)
        found["completions/frac_solutions_unsaid"] = sum(each not in answers for each in solutions) / len(solutions)
    return found
