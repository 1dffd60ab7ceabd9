"""`boresight compare`: the answers of several models to the same questions, side by side."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boresight.cli.help import value_text
from boresight.cli.options import ToolFlags
from boresight.errors import ConfigError, StoppedError
from boresight.options import Declaration, declarations
from boresight.tools.options import ToolOptions

if TYPE_CHECKING:
    from boresight.compare import ToolSettings
    from boresight.compare.comparison import Comparison

HELP = "ask several models the same questions, and show which are right and which answers improve or get worse"

ASKING: dict[str, dict[str, Any]] = {
    "max_completion_length": {"type": int, "help": "maximum tokens of an answer (512)"},
    "temperature": {"type": float, "help": "0 takes the most likely token; above 0, answers are sampled (0)"},
    "top_p": {
        "type": float,
        "help": "with a temperature above 0: keep the most likely tokens that together have this probability (1)",
    },
    "num_samples": {
        "type": int,
        "help": "with a temperature above 0: answers of each question, for mean accuracy and pass@k (1)",
    },
    "batch_size": {"type": int, "help": "questions answered in one batch; it does not affect the answers (16)"},
    "dtype": {"help": "type of the weights, such as bfloat16 (auto: the checkpoint's)"},
    "use_vllm": {
        "action": "store_const",
        "const": True,
        "help": "vLLM answers, in a process of its own for each model; adapters must be merged first (boresight export --merge)",
    },
    "min_pixels": {"type": int, "help": "smallest area an image is resized to, as in training"},
    "max_pixels": {"type": int, "help": "largest area an image is resized to, as in training"},
}
"""Fields of `AnswerSettings`."""


TOOLS = {declared.name: declared for options in (ToolFlags, ToolOptions) for declared in declarations(options)}
"""Options of the training commands, which mean the same here."""

COLUMNS = {
    "prompt": "a column of plain-text questions: each becomes the user's message",
    "solution": "the column with the right answer (solution)",
    "image": "the column with the image, or its path (image or images)",
}
"""Columns of the user's table."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for models, questions, sampling, scoring and output. None means that an option was not passed."""
    models = parser.add_argument_group("models")
    _add(
        models,
        "model",
        action="append",
        metavar="NAME=FOLDER",
        help="a name, and a model or an adapter: a folder or a hub id. Repeat the option for each model; the others are compared with the "
        "first. NAME=RUN/checkpoint-* names every checkpoint of a run. Without it, the page is written again from the stored answers",
    )
    data = parser.add_argument_group("questions")
    _add(
        data,
        "dataset",
        "dataset_name",
        metavar="DATA",
        help="rows with prompts and a solution: a file, a folder, a hub id, or a built-in set: easy_vqa, geometry, geometry_sample",
    )
    for name, meaning in COLUMNS.items():
        _add(data, f"{name}_column", metavar="NAME", help=meaning)
    _add(
        data,
        "image_root",
        metavar="FOLDER",
        help="the folder that image paths are relative to (the folder of the file that contains them)",
    )
    _add(data, "system_prompt", metavar="TEXT", help="the system message before every question")
    _add(data, "dataset_config", metavar="NAME", help="which configuration of a data set on the hub")
    _add(
        data,
        "split",
        metavar="SPLIT",
        help="which split (the only one, otherwise the first of test, validation and train that exists)",
    )
    _add(data, "num_rows", type=int, metavar="N", help="number of questions, chosen at random (all; 1,000 of geometry)")
    _add(data, "seed", type=int, metavar="N", help="seed of the choice of rows, and of sampled answers (0)")
    _add(
        data, "kind_column", metavar="NAME", help="report accuracies by the values of this column (kind, if it exists)"
    )
    asking = parser.add_argument_group("answers")
    for name, how in ASKING.items():
        _add(asking, name, **(how if "action" in how else {"metavar": "N"} | how))
    called = parser.add_argument_group("tools")
    for name, declared in TOOLS.items():
        _add(called, name, **_argument(declared))
    _add(
        called,
        "without_tools",
        action="append",
        metavar="NAME",
        help="a model that answers without the tools of the others. Repeat the option for each",
    )
    marks = parser.add_argument_group("marks")
    _add(
        marks,
        "reward",
        help="the reward function that scores answers: a name of boresight.rewards or my_module.my_function. The default depends on the "
        "solutions: choice_letter_reward for letters, numeric_answer_reward for numbers, accuracy_reward for formulas, otherwise "
        "exact_answer_reward",
    )
    _add(marks, "right_at", type=float, metavar="X", help="the lowest reward of a right answer (1)")
    page = parser.add_argument_group("what is written")
    _add(page, "output", type=Path, default=Path("compare.html"), metavar="FILE", help="the page (%(default)s)")
    _add(
        page,
        "markdown",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="write tables for a paper or an issue, as Markdown (without FILE: next to the page)",
    )
    _add(
        page,
        "answers",
        type=Path,
        metavar="FOLDER",
        help="folder of stored answers (the page's name without its suffix)",
    )
    _add(page, "title", help="title of the page")


def _argument(declared: Declaration) -> dict[str, Any]:
    """An option of a training command in argparse's form."""
    default = "" if declared.default is None else f" ({declared.default:g})"
    said = f"{declared.help[0].lower()}{declared.help[1:].rstrip('.')}{default}".replace("%", "%%")
    kind = next((each for each in (float, int) if each in declared.kinds), str)
    many = {"nargs": "+"} if list[str] in declared.kinds else {}
    return {"type": kind, "metavar": declared.metavar or value_text(declared), "help": said, **many}


def _add(group: Any, *names: str, **how: Any) -> None:
    group.add_argument(*(f"--{name}" for name in names), dest=names[0], **how)


def run(options: argparse.Namespace) -> None:
    """Generate answers, score them, write the page, and print the accuracies."""
    from rich.console import Console

    from boresight.compare.markdown import as_markdown
    from boresight.compare.page import comparison_page
    from boresight.compare.terminal import tables
    from boresight.files import write_whole
    from boresight.terminal import printable

    folder = options.answers or options.output.with_suffix("")
    if folder == options.output:
        raise ConfigError(f"--output {options.output}: add a suffix, such as .html, or name a folder with --answers.")
    try:
        comparison = _asked(options, folder) if options.model else _stored(options, folder)
    except KeyboardInterrupt:
        raise StoppedError(
            f"interrupted; the answers so far are kept in {folder}, and the same command continues from there."
        ) from None
    console = Console()

    def say(text: str) -> None:
        console.print(printable(text), soft_wrap=True, markup=False)  # a path may look like markup

    for table in tables(comparison):
        console.print(table)
    say(f"page: {write_whole(options.output, comparison_page(comparison))}")
    if options.markdown is not None:
        path = options.output.with_suffix(".md") if options.markdown == Path() else options.markdown
        say(f"markdown: {write_whole(path, as_markdown(comparison))}")
    say(f"answers: {folder} (the same command with an additional --model asks only that model)")


def _stored(options: argparse.Namespace, folder: Path) -> Comparison:
    """The comparison stored in a folder. Options on how to ask have no effect here, and are refused."""
    from dataclasses import replace

    from boresight.compare import stored_comparison

    unused = [name for name in vars(options) if name in _NEEDS_MODELS and getattr(options, name) is not None]
    if unused:
        raise ConfigError(
            f"--{unused[0]} has no effect when no model is asked: name the models with --model NAME=FOLDER."
        )
    found = stored_comparison(folder)
    return replace(found, title=options.title) if options.title else found


HELD_OUT = ("test", "validation", "train")
"""The default splits in order of preference: held-out questions first."""

_NEEDS_MODELS = {
    *ASKING, *TOOLS, "without_tools", *(f"{name}_column" for name in COLUMNS),
    "dataset", "dataset_config", "split", "num_rows", "seed", "kind_column",
    "image_root", "system_prompt", "reward", "right_at",
}  # fmt: skip


def _asked(options: argparse.Namespace, folder: Path) -> Comparison:
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers.utils import logging

    from boresight.compare import AnswerSettings, Candidate, compare
    from boresight.terminal import printable

    given = {name: getattr(options, name) for name in ASKING if getattr(options, name) is not None}
    if "top_p" in given and not given.get("temperature"):
        raise ConfigError("--top_p has no effect on greedy answers: set --temperature too.")
    settings = AnswerSettings(**given, seed=options.seed or 0, tools=_tools(options))
    candidates = [candidate for text in options.model for candidate in Candidate.all_of(text)]
    records, places = _questions(options)
    logging.disable_progress_bar()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(escape(printable(name)), total=total)
            progress.update(tasks[name], completed=done)

        return compare(
            candidates,
            records,
            folder,
            settings=settings,
            reward=options.reward,
            right_at=1.0 if options.right_at is None else options.right_at,
            kind=options.kind_column or "kind",
            places=places,
            without_tools=options.without_tools or (),
            title=options.title
            or f"{' · '.join(candidate.name for candidate in candidates)} on {_short(options.dataset)}",
            progress=tell,
        )


def _tools(options: argparse.Namespace) -> ToolSettings:
    """The tools that models may call.

    Raises:
        ConfigError: a limit is set, and there is no tool.
    """
    from boresight.compare import ToolSettings

    given = {name: value for name in TOOLS if (value := getattr(options, name)) is not None}
    functions, factory = given.pop("tools", ()), given.pop("environment_factory", None)
    if given and not functions and factory is None:
        raise ConfigError(
            f"--{next(iter(given))} has no effect: no tool can be called. Name some with --tools or --environment_factory."
        )
    return ToolSettings(tuple(functions), factory, ToolOptions(**given))


def _questions(options: argparse.Namespace) -> tuple[Any, Sequence[int] | None]:
    """The records, and the numbers of those to ask; None for all."""
    from boresight.data.mixture import readable
    from boresight.data.sources import load_rows
    from boresight.demo.built_in import NAMES, load_built_in

    if not options.dataset:
        raise ConfigError(f"--dataset is missing: a file, a folder, a hub id, or one of {', '.join(NAMES)}.")
    columns = {name: named for name in COLUMNS if (named := getattr(options, f"{name}_column")) is not None}
    if options.dataset in NAMES:
        idle = [*(f"{name}_column" for name in columns), *(["dataset_config"] * bool(options.dataset_config))]
        idle += ["image_root"] * bool(options.image_root)
        if idle:
            raise ConfigError(f"--{idle[0]} has no effect on the built-in {options.dataset}: drop it.")
        asked = {"split": options.split or "test", "num_rows": options.num_rows, "seed": options.seed or 0}
        return readable(load_built_in(options.dataset, **asked), {}, options.system_prompt), None
    if options.seed is not None and options.num_rows is None and not options.temperature:
        raise ConfigError(
            "--seed has no effect: all rows are asked, and answered greedily. Drop it, or give --num_rows."
        )
    records: Any = load_rows(
        options.dataset,
        split=options.split or HELD_OUT,
        name=options.dataset_config,
        columns=columns,
        image_root=options.image_root,
    )
    records = readable(records, columns, options.system_prompt)
    if options.num_rows is None:
        return records, None
    if not 1 <= options.num_rows <= len(records):
        raise ConfigError(f"--num_rows {options.num_rows}: {options.dataset} has {len(records)} rows.")
    return records, sorted(random.Random(options.seed or 0).sample(range(len(records)), options.num_rows))


def _short(dataset: str) -> str:
    return Path(dataset).name or dataset
