"""`boresight report`: a run as one HTML file, or as a live page during training."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the page of a run: curves, time, verdicts, completions"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The runs, and where their page is written."""
    parser.add_argument(
        "run_folders",
        type=Path,
        metavar="RUN",
        nargs="+",
        help="the run folder (output_dir of a trainer); several: one page with their curves side by side and their differences",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the file to write (default: RUN/report.html; of several runs: runs.html in the folder that holds them)",
    )
    parser.add_argument(
        "--max-completions",
        type=int,
        help="maximum completions in the page; beyond it, whole steps are dropped evenly (default: 20000)",
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
    from boresight.report.page import MAX_COMPLETIONS, write_report
    from boresight.report.several import write_comparison
    from boresight.report.watch import watch
    from boresight.terminal import printable

    def say(text: str) -> None:
        # A path may look like markup, or hold control characters.
        Console().print(printable(text), soft_wrap=True, markup=False, highlight=False)

    if len(options.run_folders) > 1:
        for name in ("watch", "port", "max_completions"):
            if getattr(options, name):
                raise ConfigError(f"--{name.replace('_', '-')} is for one run: name one, or leave it out.")
        path = write_comparison(options.run_folders, options.output, say=say)
        say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB; it opens from disk, offline)")
        return
    (folder,) = options.run_folders
    max_completions = MAX_COMPLETIONS if options.max_completions is None else options.max_completions
    if max_completions < 1:
        raise ConfigError(f"--max-completions {max_completions} leaves nothing to show: set at least 1.")
    if options.watch:
        if options.output is not None:
            raise ConfigError("--watch serves the page and writes no file: leave out --output.")
        watch(
            folder,
            port=options.port,
            max_completions=max_completions,
            say=lambda address: say(f"{address} (Ctrl-C ends it)"),
        )
        return
    if options.port:
        raise ConfigError("--port has no effect without --watch: add --watch, or leave it out.")
    path = write_report(folder, options.output, max_completions=max_completions, say=say)
    say(f"{path} ({path.stat().st_size / 2**20:.1f} MiB; it opens from disk, offline)")
