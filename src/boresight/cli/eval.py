"""`boresight eval`: standard benchmarks, by lmms-eval, of one or several models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError, StoppedError

if TYPE_CHECKING:
    from boresight.compare import Candidate
    from boresight.evaluate import Evaluation

HELP = "ask models the questions of standard benchmarks (lmms-eval), with images and blind, and test the differences"

ASKING: dict[str, dict[str, Any]] = {
    "limit": {"type": int, "metavar": "N", "help": "only the first N questions of each task (all)"},
    "max_completion_length": {
        "type": int,
        "metavar": "N",
        "help": "maximum tokens of an answer; models that reason need more than most tasks give (the task's)",
    },
    "system_prompt": {
        "metavar": "TEXT",
        "help": "the system message, as in training (the task's, which is mostly none)",
    },
    "batch_size": {
        "type": int,
        "metavar": "N",
        "help": "questions answered in one batch; it does not affect the answers (16)",
    },
    "dtype": {"metavar": "TYPE", "help": "type of the weights, such as bfloat16 (auto: the checkpoint's)"},
    "use_vllm": {
        "action": "store_const",
        "const": True,
        "help": "vLLM, the engine of training, answers; it starts for each task. Adapters must be merged first (boresight export --merge)",
    },
    "min_pixels": {"type": int, "metavar": "N", "help": "smallest area an image is resized to, as in training"},
    "max_pixels": {"type": int, "metavar": "N", "help": "largest area an image is resized to, as in training"},
    "include_path": {"metavar": "FOLDER", "help": "a folder with further tasks in lmms-eval's format"},
}
"""Fields of `EvalSettings`."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Models, tasks, how they are asked, and where results go. None means that an option was not passed."""
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a run, a model or an adapter: a folder or a hub id; NAME=FOLDER gives it a name, RUN/checkpoint-* names every checkpoint. "
        "The others are compared with the first",
    )
    parser.add_argument(
        "--tasks",
        required=True,
        metavar="TASK,…",
        help="tasks, groups or tags of lmms-eval, with commas between them; lmms-eval --tasks list names all",
    )
    for name, how in ASKING.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument(
        "--no_blind",
        action="store_true",
        help="do not ask the questions again with each image replaced by a plain gray one",
    )
    parser.add_argument(
        "--python",
        metavar="FILE",
        help="the Python of an environment that has lmms-eval and this boresight (this one)",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("eval"),
        metavar="FOLDER",
        help="for results.md, results.json and lmms-eval's own files (%(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Ask, print the tables, and write them."""
    import json

    from rich.console import Console

    from boresight.evaluate.tables import NOTE, as_markdown, terminal_tables
    from boresight.files import write_whole
    from boresight.terminal import printable

    try:
        evaluation = _asked(options)
    except KeyboardInterrupt:
        raise StoppedError("interrupted; run the command again, from the start.") from None
    console = Console()
    for table in terminal_tables(evaluation):
        console.print(table)
    console.print(printable(NOTE), markup=False, highlight=False)
    written = [
        write_whole(options.output_dir / "results.md", as_markdown(evaluation)),
        write_whole(options.output_dir / "results.json", json.dumps(evaluation.as_json(), indent=2) + "\n"),
    ]
    for path in written:
        console.print(printable(path), soft_wrap=True, markup=False, highlight=False)


def _asked(options: argparse.Namespace) -> Evaluation:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from boresight.evaluate import EvalSettings, evaluate
    from boresight.terminal import printable

    given = {name: value for name in ASKING if (value := getattr(options, name)) is not None}
    tasks = tuple(name.strip() for name in options.tasks.split(","))
    settings = EvalSettings(tasks, blind=not options.no_blind, **given)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        bars: dict[str, Any] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(escape(printable(name)), total=total)
            progress.update(bars[name], completed=done)

        return evaluate(_candidates(options.models), settings, options.output_dir, python=options.python, progress=tell)


def _candidates(models: list[str]) -> list[Candidate]:
    """The models by name; of a run, its folder of weights."""
    from boresight.compare import Candidate
    from boresight.export.job import source_of
    from boresight.files import missing_path

    found: list[Candidate] = []
    for candidate in (each for text in models for each in Candidate.all_of(text)):
        if (where := missing_path(candidate.source)) is not None:
            raise ConfigError(f"there is no model {candidate.source} {where}")
        folder = Path(candidate.source)
        source = str(source_of(folder).weights) if folder.is_dir() else candidate.source
        found.append(Candidate(candidate.name, source))
    return found
