"""The scores of test_samples.py's files, as text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from boresight.evaluate.job import EvalSettings, Evaluation, tables_of
from boresight.evaluate.samples import read_results
from boresight.evaluate.tables import NOTE, as_markdown, terminal_tables

from .stand_in import FIXTURES


def evaluation(*names: str, blind: bool = True, **given: Any) -> Evaluation:
    passes = [(name, each) for name in names for each in ((False, True) if blind else (False,))]
    results = {(name, each): read_results(FIXTURES / (name + "-blind" * each)) for name, each in passes}
    found = tables_of(names, {key: {"own_colors": own["own_colors"]} for key, own in results.items()})
    settings = EvalSettings(("own_colors",), blind=blind, **given)
    truncated = {name: {"own_colors": 2} if name == "base" else {} for name in names}
    return Evaluation({name: f"some/{name}" for name in names}, settings, found, truncated)


def printed(found: Evaluation, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in terminal_tables(found):
        console.print(table)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.strip() for line in text.splitlines() if line.strip() and "──" not in line)


MARKDOWN = f"""\
## Benchmarks

base = some/base, other = some/other; engine transformers.

### own\\_colors

| metric | model | score | questions | mean | 95 % interval | blind | images help, hurt | p | against base | better, worse | p |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| even | base | 1 | 4 | 100.0 % | 51.0–100.0 % | 75.0 % | 1, 0 | 1.00 |  |  |  |
| even | other | 0.25 | 4 | 25.0 % | 4.6–69.9 % | 100.0 % | 0, 3 | 0.25 | −75.0 | 0, 3 | 0.25 |
| length | base | 9 | 4 | 9.000 | 4.133 to 13.867 | 9.750 | 3, 1 | 0.62 |  |  |  |
| length | other | 9.75 | 4 | 9.750 | 7.173 to 12.327 | 6.750 | 1, 3 | 0.62 | \\+0.750 | 1, 2 | 1.00 |
| rating | base | 10 | 4 | 2.500 | 1.114 to 3.886 | 1.875 | 3, 1 | 0.62 |  |  |  |
| rating | other | 11.5 | 4 | 2.875 | 1.306 to 4.444 | 1.125 | 3, 1 | 0.62 | \\+0.375 | 2, 0 | 0.50 |

answers that reached the limit of tokens: base 2 \\(--max\\_completion\\_length raises it\\)

{NOTE}
"""

TERMINAL = """\
own_colors
metric   model   score   questions      mean     95 % interval
even     base        1           4   100.0 %      51.0–100.0 %
even     other    0.25           4    25.0 %        4.6–69.9 %
length   base        9           4     9.000   4.133 to 13.867
length   other    9.75           4     9.750   7.173 to 12.327
rating   base       10           4     2.500    1.114 to 3.886
rating   other    11.5           4     2.875    1.306 to 4.444
answers that reached the limit of tokens: base 2
(--max_completion_length raises it)
own_colors, without images
metric   model     blind   images help, hurt      p
even     base     75.0 %                1, 0   1.00
even     other   100.0 %                0, 3   0.25
length   base      9.750                3, 1   0.62
length   other     6.750                1, 3   0.62
rating   base      1.875                3, 1   0.62
rating   other     1.125                3, 1   0.62
own_colors, against base
metric   model   against base   better, worse      p
even     other          −75.0            0, 3   0.25
length   other         +0.750            1, 2   1.00
rating   other         +0.375            2, 0   0.50"""


def test_as_markdown() -> None:
    assert as_markdown(evaluation("base", "other")) == MARKDOWN


def test_in_a_terminal_of_80_columns() -> None:
    assert printed(evaluation("base", "other")) == TERMINAL


def test_one_model_and_no_blind_pass_need_one_table() -> None:
    own = printed(evaluation("other", blind=False))
    assert own.splitlines() == [
        "own_colors",
        "metric   model   score   questions     mean     95 % interval",
        "even     other    0.25           4   25.0 %        4.6–69.9 %",
        "length   other    9.75           4    9.750   7.173 to 12.327",
        "rating   other    11.5           4    2.875    1.306 to 4.444",
    ]


def test_what_was_asked_otherwise_is_said() -> None:
    given = {"limit": 4, "system_prompt": "Be *brief*", "max_completion_length": 9, "use_vllm": True}
    line = as_markdown(evaluation("base", **given)).splitlines()[2]
    assert line == "base = some/base; engine vllm, limit 4, max_completion_length 9, system_prompt Be \\*brief\\*."


def test_the_file_for_programs_has_the_p_values() -> None:
    own = evaluation("base", "other").as_json()["tasks"]["own_colors"]["even"]["other"]
    assert own["value"] == own["mean"]["value"] == 0.25 and own["blind"]["value"] == 1.0
    assert own["from_first"] == {"better": 0, "worse": 3, "equal": 1, "gain": -0.75, "p": 0.25}


@pytest.mark.parametrize("name", ["[red]x[/red]", "a|b"])
def test_names_are_shown_as_they_are(name: str) -> None:
    found = evaluation("base", blind=False)
    task = next(iter(found.tasks.values()))
    renamed = Evaluation(
        {name: "x"}, found.settings, {name: {metric: {name: own["base"]} for metric, own in task.items()}}
    )
    assert printed(renamed).splitlines()[0] == name and f"even     {name}" in printed(renamed)
    assert name not in as_markdown(renamed)  # escaped
