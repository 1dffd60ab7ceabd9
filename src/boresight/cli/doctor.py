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
