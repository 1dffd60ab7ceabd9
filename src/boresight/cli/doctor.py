"""`boresight doctor`: checks of a model before training."""

from __future__ import annotations

import argparse

HELP = "check a model before training"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model and the checks."""
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument(
        "--probe",
        action="store_true",
        required=True,
        help="check the invariants on the model and report its layout",
    )


def run(options: argparse.Namespace) -> None:
    """Probe the model and print the report. A failed check is bad input."""
    from rich.console import Console

    from boresight.doctor.probe import probe
    from boresight.errors import ModelError

    report = probe(options.model)
    Console().print(report)
    if not report.passed:
        raise ModelError(f"{options.model} fails a check: training would give wrong results without an error.")
