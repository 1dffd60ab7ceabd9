"""`boresight doctor`: a run checked before it starts, a model checked, and a step that was not finite replayed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boresight.preflight import Finding

HELP = "check a run before it starts (doctor METHOD), a model, or a step that was not finite"
EPILOG = (
    "boresight doctor METHOD takes the flags of boresight METHOD, and checks that run: rows, lengths, gold answers, template, trained "
    "parts, the first and the worst batch, layout, sampler, disk. --show-batch prints the first batch, with the tokens that count in the "
    "loss in green; --memory-gib N checks against another device's memory. Exit code 0: nothing is wrong; 2: errors or warnings."
)
EXPLANATION = """boresight doctor checks before you train. Say what:

  a run, with the flags of its command (rows, rewards, template, memory, layout):
    boresight doctor grpo --model_name_or_path MODEL --dataset_name DATA --reward_funcs REWARD

  a model (are its numbers its own, whichever way they are computed?):
    boresight doctor --probe --model MODEL

  what a model needs (from its config alone), and a set-up that fits:
    boresight doctor --plan --model MODEL --gpus 8 --memory 80

  a step that was not finite (the run's log names the file):
    boresight doctor --replay FILE

More: boresight doctor --help."""
COLOURS = {"error": "red", "warning": "yellow", "note": ""}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model and the checks."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--model", help="a folder or a hub id (with --replay, the default is the run's checkpoint before the step)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--probe", action="store_true", help="check the invariants on the model and report its layout")
    what.add_argument(
        "--replay",
        metavar="FILE",
        help="run the groups of a step that was not finite again, and name the first module that goes bad; the run's log names the file",
    )
    what.add_argument(
        "--plan",
        action="store_true",
        help="what training the model needs on --gpus of --memory; reads its config alone",
    )
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="with --plan: how many GPUs (default: 1)")
    parser.add_argument(
        "--memory",
        type=float,
        default=80.0,
        metavar="GB",
        help="with --plan: the memory of each GPU in GB (default: 80)",
    )


def run(options: argparse.Namespace) -> None:
    """Probe the model or replay the step, and print the report. A failed check is bad input."""
    from rich.console import Console

    from boresight.errors import ConfigError, ModelError

    console = Console()
    if options.replay is not None:
        from boresight.doctor.replay import replay

        found = replay(options.replay, options.model)
        console.print(found)
        console.print(found.advice, markup=False)
        return
    if not options.model:
        raise ConfigError("--probe and --plan are about a model: name it with --model.")
    if options.plan:
        from boresight.doctor.plan import plan

        if options.gpus < 1 or options.memory <= 0:
            raise ConfigError(f"--gpus {options.gpus} --memory {options.memory:g}: both must be above 0.")
        table, settings = plan(options.model, options.gpus, options.memory)
        console.print(table)
        print(settings, end="")
        return
    from boresight.doctor.probe import probe

    report = probe(options.model)
    console.print(report)
    if not report.passed:
        raise ModelError(f"{options.model} fails a check: training would give wrong results without an error.")


def check_run(method: str, words: Sequence[str]) -> int:
    """Check the run of a training command, print what is found, and return the exit code: 0, or 2 if there are errors or warnings.

    Args:
        method: the training command.
        words: its flags, and those of doctor.

    Raises:
        ConfigError: the flags cannot be read.
    """
    from boresight.cli.command import read_command

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--show-batch", "--show_batch", action="store_true")
    own.add_argument("--memory-gib", "--memory_gib", type=float)
    options, rest = own.parse_known_args(list(words))
    if {"-h", "--help", "--help-all"} & set(rest):
        print(f"{EPILOG}\n")
    command = read_command(method, rest, launches=False)

    # Everything below imports torch, which takes seconds, and an unreadable flag needs none of it.
    from rich.console import Console

    from boresight.cli.adapter import peft_config
    from boresight.cli.rows import load_datasets
    from boresight.doctor.check_up import PlannedRun, check_up

    def arguments() -> dict[str, object]:
        sampled = {"reward_funcs": command.rewards.reward_funcs} if command.rewards.reward_funcs else {}
        return {"peft_config": peft_config(command), **sampled}

    planned = PlannedRun(
        trainer=command.method.trainer_class(),
        model=command.model.model_name_or_path,
        config=command.training,
        rows=partial(load_datasets, command),
        arguments=arguments,
    )
    memory = None if options.memory_gib is None else int(options.memory_gib * 2**30)
    console = Console(soft_wrap=True, highlight=False)
    return _printed(check_up(planned, memory_bytes=memory, show=console.print if options.show_batch else None))


def _printed(findings: Iterable[Finding]) -> int:
    """Print findings as they are found, and return the exit code."""
    from rich.console import Console
    from rich.text import Text

    from boresight.terminal import printable

    console = Console(soft_wrap=True, highlight=False)
    counts = {"error": 0, "warning": 0, "note": 0}
    for finding in findings:
        counts[finding.level] += 1
        console.print(Text(printable(f"{finding.level:7}  {finding.check}: {finding}"), style=COLOURS[finding.level]))
    console.print(f"{counts['error']} errors, {counts['warning']} warnings")
    return 2 if counts["error"] or counts["warning"] else 0
