"""Some held-out rows that a training command evaluates where nobody asked for an evaluation, so that its verdict can speak of them.

Only the command line does so. In Python, `eval_strategy` keeps the default of transformers and TRL: "no".
"""

from __future__ import annotations

import os
import random
from typing import Any

from boresight.cli.command import Command
from boresight.cli.rows import check_columns, data_set
from boresight.data.mixture import read_dataset
from boresight.errors import BoresightError, SplitError
from boresight.report.verdicts import FIRST_VERDICT

NUM_ROWS = 64
"""Held-out rows: the 95 % interval of a share of one half is then ± 12 points."""

EVERY = 0.25
"""Share of all steps between evaluations."""


def add_held_out_rows(command: Command) -> Any:
    """The held-out rows of a command that says nothing about evaluation, which it evaluates from now on; None where there are none.

    The data set must have a split called test. Mixtures, streams and runs that end before the first verdict are not evaluated. What is
    done is printed, with the way to switch it off.
    """
    training = command.training
    is_short = 0 < training.max_steps < FIRST_VERDICT
    if (
        command.sets_evaluation
        or command.parts
        or command.data.dataset_streaming
        or is_short
        or not training.verdict_steps
    ):
        return None
    try:
        rows = test_rows(command)
    except SplitError:
        return None
    except (BoresightError, OSError) as error:
        _say(f"the test split is not evaluated, since it cannot be read: {error}")
        return None
    if not len(rows):
        return None
    few = rows.select(sorted(random.Random(0).sample(range(len(rows)), min(NUM_ROWS, len(rows)))))
    training.eval_strategy, training.eval_steps, training.do_eval = type(training.eval_strategy)("steps"), EVERY, True
    if command.method.samples:
        training.num_generations_eval = 1
    _say(
        f"{len(few)} of {len(rows)} rows of the split test are held out: they are evaluated at every quarter of the run, so that verdicts "
        "do not rest on training rows alone. --eval_strategy no switches it off; --eval_strategy steps evaluates all of them."
    )
    return few


def test_rows(command: Command) -> Any:
    """The rows of the split test, with the columns that the method needs.

    Raises:
        SplitError: there is no such split.
        DataError: it cannot be read.
    """
    return read_dataset(
        data_set(command.data.dataset_name, "test", command),
        system_prompt=command.data.system_prompt,
        check=lambda found: check_columns(command, found),
    )


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"boresight: {text}", flush=True)
