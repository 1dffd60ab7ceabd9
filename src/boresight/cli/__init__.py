"""`boresight`: what people type."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from boresight.errors import UserError

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return what the shell is told: 0 done, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"boresight: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("boresight: interrupted", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _parser() -> argparse.ArgumentParser:
    # Commands import what they run when they run: `boresight --help` loads no torch.
    from boresight.cli import compare, demo, doctor, env

    parser = argparse.ArgumentParser(prog="boresight", description="Align vision-language models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (compare, demo, doctor, env):
        name = command.__name__.rsplit(".", 1)[-1]
        own = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_options(own)
        own.set_defaults(run=command.run)
    return parser
