"""`boresight doctor`: checks of a model before training, and of a step that was not finite."""

from __future__ import annotations

import argparse

HELP = "check a model before training, or replay a step that was not finite"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model and the checks."""
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
        raise ConfigError("--probe checks a model: name it with --model.")
    from boresight.doctor.probe import probe

    report = probe(options.model)
    console.print(report)
    if not report.passed:
        raise ModelError(f"{options.model} fails a check: training would give wrong results without an error.")
