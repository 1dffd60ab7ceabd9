"""`boresight doctor`: what can be known of a model before training."""

from __future__ import annotations

import argparse

HELP = "check a model before training"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The model, and which checks."""
    parser.add_argument("--model", required=True, help="a folder or a hub id")
    parser.add_argument(
        "--probe",
        action="store_true",
        required=True,
        help="run the invariants on the model and say which layout it gets",
    )


def run(options: argparse.Namespace) -> None:
    """Probe the model and print the report; a failed check is bad input."""
    from rich.console import Console

    from boresight.doctor.probe import probe
    from boresight.errors import ModelError

    report = probe(options.model)
    Console().print(report)
    if not report.passed:
        raise ModelError(f"{options.model} fails a check: it would train silently wrong.")
