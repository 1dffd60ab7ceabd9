"""`boresight report`: a run as one HTML file, or as a live page during training."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the page of a run: curves, time, verdicts, completions"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The run, and where its page is written."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the run folder (output_dir of a trainer)")
    parser.add_argument("--output", type=Path, help="the file to write (default: RUN/report.html)")
    parser.add_argument(
        "--max-completions",
        type=int,
        default=20_000,
        help="maximum completions in the page; beyond it, whole steps are dropped evenly (default: %(default)s)",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="serve the page on this machine only, and refresh it during training",
    )
    parser.add_argument("--port", type=int, default=0, help="the port of --watch (default: any free port)")


def run(options: argparse.Namespace) -> None:
    """Write the page, or serve it until interrupted."""
    from rich.console import Console

    from boresight.errors import ConfigError
    from boresight.report.page import write_report
    from boresight.report.watch import watch
    from boresight.terminal import printable

    def say(text: str) -> None:
        # A path may look like markup, or hold control characters.
        Console().print(printable(text), soft_wrap=True, markup=False, highlight=False)

    if options.max_completions < 1:
        raise ConfigError(f"--max-completions {options.max_completions} leaves nothing to show: set at least 1.")
    if options.watch:
        if options.output is not None:
            raise ConfigError("--watch serves the page and writes no file: leave out --output.")
        watch(
            options.run_folder,
            port=options.port,
            max_completions=options.max_completions,
            say=lambda address: say(f"{address} (Ctrl-C ends it)"),
        )
        return
    if options.port:
        raise ConfigError("--port has no effect without --watch: add --watch, or leave it out.")
    path = write_report(options.run_folder, options.output, max_completions=options.max_completions, say=say)
    say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB; it opens from disk, offline)")
