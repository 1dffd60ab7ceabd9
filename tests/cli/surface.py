"""Every flag of every command, as text: `.venv/bin/python tests/cli/surface.py` renews `surface.txt`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from boresight.cli import TRAINING, _parser
from boresight.cli.help import default_text, value_text
from boresight.cli.methods import METHODS, options_of

FILE = Path(__file__).parent / "surface.txt"
HEAD = """Every flag of every command. A test compares. To renew it: .venv/bin/python tests/cli/surface.py
Training commands: --flag VALUE, then its default and the commands that have it (all: every one). (refused): it is there to say why not.
(transformers): declared by transformers alone, and so of the version in the lock.
"""
THEIRS = "(transformers)"


def surface() -> str:
    """What the file should hold."""
    return "\n".join([HEAD, *trained(), "", *others()]) + "\n"


def trained() -> list[str]:
    """The flags of the training commands, once each."""
    found: dict[str, dict[str, list[str]]] = {}
    theirs = {declared.name for declared in fields(TrainingArguments)}
    for command in TRAINING:
        for name, declared in options_of(command).items():
            shown = f"{value_text(declared) or 'true|false'} [{default_text(declared.default)}]"
            if name in METHODS[command].unsupported:
                shown += " (refused)"
            if name in theirs - {own.name for own in fields(METHODS[command].options)}:
                shown += f" {THEIRS}"
            found.setdefault(name, {}).setdefault(shown, []).append(command)
    return [
        f"--{name} {shown}  {'all' if len(commands) == len(TRAINING) else ' '.join(commands)}"
        for name in sorted(found)
        for shown, commands in found[name].items()
    ]


def others() -> list[str]:
    """The flags of all other commands."""
    return [
        f"boresight {command}: {'/'.join(action.option_strings) or action.dest} [{action.default}]"
        for command, parser in sorted(_parser()[1].items())
        for action in parser._actions
        if "--help" not in action.option_strings
    ]


if __name__ == "__main__":
    FILE.write_text(surface())
