"""`boresight`: the command line.

    sft, dpo, mpo, grpo, gspo   train. The modules are methods (the commands), options and flags (their arguments), help, config_file,
                                command (the arguments as read), rows and adapter (loaded from them), launch (through accelerate),
                                training (a run from start to end) and summary
    vllm-serve, demo, …         each in the file of its name

Your own scripts can take the same flags. `read_command("grpo")` reads them, `load_datasets` loads the rows, `peft_config` builds the
adapter's configuration, `train` trains, and `exit_code` converts errors to exit codes.

Imports inside functions, here and in the commands, keep `boresight --help` and the help of every command from importing torch.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from boresight.cli import compare, completion, demo, doctor, env, eval, export, report, vllm_serve  # noqa: A004 -- named as the command
from boresight.cli.command import Command, read_command
from boresight.cli.methods import METHODS
from boresight.errors import BoresightError, ConfigError, StoppedError, UserError, nearest
from boresight.terminal import printable

if TYPE_CHECKING:
    from boresight.cli.adapter import peft_config
    from boresight.cli.rows import load_datasets
    from boresight.cli.training import train

__all__ = ["Command", "exit_code", "load_datasets", "main", "peft_config", "read_command", "train"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
SIGNALLED = 128
"""A command that a signal ended returns this plus the signal's number, as a shell reports it: 130 for SIGINT, 143 for SIGTERM."""

TRAINING = {name: method.help for name, method in METHODS.items()}
"""The training commands."""

WARN_WHEN_IMPORTED = ("torch.utils._pytree", "bitsandbytes")
"""Loggers that warn of their own affairs as soon as torchao and bitsandbytes are imported, which transformers and PEFT do where they find
them, whether a run uses them or not."""

OWN = (vllm_serve, report, compare, eval, export, demo, doctor, env, completion)
"""The commands that do not train."""

_HOMES = {"load_datasets": "rows", "peft_config": "adapter", "train": "training"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for name in WARN_WHEN_IMPORTED:
        logging.getLogger(name).setLevel(logging.ERROR)
    return exit_code(lambda: _run(words))


def _run(words: list[str]) -> int | None:
    name = words[0] if words else ""
    if name in TRAINING:
        command = read_command(name, words[1:])  # answers --help before torch is imported
        return importlib.import_module("boresight.cli.training").run(command)
    if name == "doctor" and words[1:] and words[1] in TRAINING:
        return doctor.check_run(words[1], words[2:])
    if words == ["doctor"]:
        print(doctor.EXPLANATION)
        return BAD_INPUT
    parser, commands = _parser()
    if name and not name.startswith("-") and name not in commands:
        raise ConfigError(
            f"there is no command {name!r}.{nearest(name, [*TRAINING, *commands])} All of them: boresight --help."
        )
    options, further = parser.parse_known_args([_as_declared(word, commands.get(name)) for word in words])
    if "further" in inspect.signature(options.run).parameters:
        return options.run(options, further)
    if further:
        flag = further[0].split("=")[0]
        known = [flag for action in commands[name]._actions for flag in action.option_strings]
        raise ConfigError(f"boresight {name} has no option {flag}.{nearest(flag, known)} See boresight {name} --help.")
    return options.run(options)


def exit_code(work: Callable[[], object]) -> int:
    """Call a function and return the exit code: the integer that it returns, or 0 done, 1 failed, 2 bad input, 130 interrupted,
    143 terminated. boresight's own errors are printed."""
    try:
        result = work()
    except BoresightError as error:
        _tell_ranks(error)
        return _printed(error)
    except KeyboardInterrupt:
        print("\nboresight: interrupted; nothing was saved", file=sys.stderr)
        return INTERRUPTED
    return result if isinstance(result, int) else DONE


def _tell_ranks(error: BoresightError) -> None:
    """Report an error to the other ranks, if this process has any."""
    if (link := sys.modules.get("boresight.rank_link")) is not None:  # it imports torch
        link.report(error)


def _printed(error: BoresightError) -> int:
    """Print an error, and return its exit code."""
    if isinstance(error, UserError):
        print(printable(f"boresight: {error}"), file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, StoppedError):
        if os.environ.get("RANK", "0") == "0":
            print(printable(f"\nboresight: {error}"), file=sys.stderr)
        return SIGNALLED + error.signal
    # For example a failed engine; its notes describe how to continue.
    print(printable("\n".join([f"\nboresight: {error}", *getattr(error, "__notes__", ())])), file=sys.stderr)
    return FAILED


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all commands, and the parsers of the commands that do not train. Training commands are parsed in `flags`."""
    parser = argparse.ArgumentParser(
        prog="boresight",
        description="Align vision-language models.",
        epilog="For the options of a command: boresight COMMAND --help.",
        formatter_class=_Wide,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, meaning in TRAINING.items():
        commands.add_parser(name, help=meaning)
    own: dict[str, argparse.ArgumentParser] = {}
    for command in OWN:
        name = command.__name__.rsplit(".", 1)[-1].replace("_", "-")
        own[name] = commands.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        command.add_options(own[name])
        own[name].set_defaults(run=command.run)
    return parser, own


def own_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands that do not train."""
    return _parser()[1]


class _Wide(argparse.HelpFormatter):
    """Aligns the commands and their descriptions in two columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=18, width=80)
        self._action_max_length = 16


def _as_declared(word: str, command: argparse.ArgumentParser | None) -> str:
    """A flag in the spelling that its command declares, with hyphens or underscores."""
    flag, equals, value = word.partition("=")
    if command is None or not flag.startswith("--"):
        return word
    known = {flag for action in command._actions for flag in action.option_strings}
    spellings = (flag, f"--{flag[2:].replace('_', '-')}", f"--{flag[2:].replace('-', '_')}")
    return next((spelling for spelling in spellings if spelling in known), flag) + equals + value


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
