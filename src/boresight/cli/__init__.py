"""`boresight`: what people type.

    sft, dpo, mpo, grpo, gspo   train: methods (the commands), options and flags (what they are told), config_file, command (all that
                                read), rows and adapter (what it names), launch (through accelerate), training (a run from start to end)
    compare, demo, doctor, env  each a file of its name

A script of one's own takes the same flags: `read_command("grpo")` reads them, `exit_code` makes errors what a shell expects.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from boresight.errors import StoppedError, UserError

if TYPE_CHECKING:
    from boresight.cli.command import Command, read_command

__all__ = ["Command", "exit_code", "main", "read_command"]

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130

TRAINING = {
    "sft": "imitate demonstrations (supervised fine-tuning)",
    "dpo": "learn from pairs of answers of which one is preferred",
    "mpo": "DPO with a quality and a generation loss beside (mixed preference optimisation)",
    "grpo": "sample several answers, reward them, and learn from how they compare",
    "gspo": "GRPO with the importance ratio over whole answers",
}
"""The training commands; here, so that `boresight --help` loads no torch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return what the shell is told: 0 done, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in TRAINING:
        return exit_code(lambda: importlib.import_module("boresight.cli.training").run(words[0], words[1:]))
    options = _parser().parse_args(words)
    return exit_code(lambda: options.run(options))


def exit_code(work: Callable[[], object]) -> int:
    """Do some work, and return what the shell is told: 0 done, 2 bad input, 130 interrupted. Errors of the user's are printed."""
    try:
        work()
    except UserError as error:
        print(f"boresight: {error}", file=sys.stderr)
        return BAD_INPUT
    except StoppedError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"\nboresight: {error}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("\nboresight: interrupted; nothing was saved", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _parser() -> argparse.ArgumentParser:
    # Commands import what they run when they run: `boresight --help` loads no torch.
    from boresight.cli import compare, demo, doctor, env, report

    parser = argparse.ArgumentParser(prog="boresight", description="Align vision-language models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, meaning in TRAINING.items():
        commands.add_parser(name, help=meaning)
    for command in (compare, demo, doctor, env, report):
        name = command.__name__.rsplit(".", 1)[-1]
        own = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_options(own)
        own.set_defaults(run=command.run)
    return parser


def __getattr__(name: str) -> object:
    if name not in ("Command", "read_command"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("boresight.cli.command"), name)
