"""`boresight completion`: a script that makes a shell complete commands, options and their choices.

The script holds all words, so that completing starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from boresight.cli.flags import spellings
from boresight.cli.methods import METHODS, options_of

if TYPE_CHECKING:
    from boresight.options import Declaration

HELP = "print a script that completes commands and options: source <(boresight completion bash)"
EPILOG = (
    "bash and zsh: add 'source <(boresight completion bash)' (zsh) to ~/.bashrc (~/.zshrc). "
    "fish: boresight completion fish > ~/.config/fish/completions/boresight.fish"
)
SHELLS = ("bash", "zsh", "fish")

Words = Mapping[str, Mapping[str, Sequence[str]]]
"""Command → flag → the choices of its value, empty where the value is free."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    from boresight.cli import own_parsers  # the commands that do not train, of which this is one

    print(script(options.shell, all_words(own_parsers())))


def all_words(own: Mapping[str, argparse.ArgumentParser]) -> Words:
    """The words of every command.

    Args:
        own: the parsers of the commands that do not train.
    """
    found: dict[str, dict[str, Sequence[str]]] = {
        name: {
            flag: _choices(declared)
            for declared in options_of(name).values()
            if declared.name not in method.unsupported
            for flag in _flags(declared)
        }
        | {"--help": (), "--help-all": ()}
        for name, method in METHODS.items()
    }
    for name, parser in own.items():
        actions = [(flag, action) for action in parser._actions for flag in action.option_strings]
        found[name] = {flag: tuple(map(str, action.choices or ())) for flag, action in actions if flag != "-h"}
    found["doctor"] |= dict.fromkeys(("--show-batch", "--memory-gib"), ())
    return found


def script(shell: str, words: Words) -> str:
    """The script for `shell`."""
    return _fish(words) if shell == "fish" else _bash(words, zsh=shell == "zsh")


def _flags(declared: Declaration) -> list[str]:
    """The spelling with underscores, as the documentation has it, and the one that switches off."""
    switched = [f"--no_{declared.name}"] if declared.is_switch and declared.default is True else []
    return [spellings(declared.name)[0], *switched]


def _choices(declared: Declaration) -> Sequence[str]:
    return declared.choices or (("true", "false") if declared.is_switch else ())


def _bash(words: Words, *, zsh: bool) -> str:
    lines = ["autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    lines += [
        "_boresight() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"',
        '  [[ $command == doctor && ${COMP_WORDS[2]} != -* && COMP_CWORD -gt 2 ]] && command="${COMP_WORDS[2]}"',
        "  local flags= choices=",
        "  if [[ $COMP_CWORD == 1 ]]; then",
        f"    flags={shlex.quote(' '.join(words))}",
        "  else",
        '    case "$command" in',
        *(f"      {name}) flags={shlex.quote(' '.join(flags))};;" for name, flags in words.items()),
        "    esac",
        '    case "$command $previous" in',
        *(f"      {where}) choices={shlex.quote(chosen)};;" for where, chosen in _by_choices(words)),
        "    esac",
        "  fi",
        '  [[ $command == doctor && $COMP_CWORD == 2 ]] && flags="$flags ' + " ".join(METHODS) + '"',
        '  if [[ -n $choices ]]; then COMPREPLY=( $(compgen -W "$choices" -- "$current") )',
        "  elif [[ $COMP_CWORD == 1 || $current == -* || $command == doctor && $COMP_CWORD == 2 ]]; then",
        '    COMPREPLY=( $(compgen -W "$flags" -- "$current") )',
        '  else COMPREPLY=( $(compgen -f -- "$current") ); fi',
        "}",
        "complete -o filenames -o bashdefault -F _boresight boresight",
    ]
    return "\n".join(lines)


def _by_choices(words: Words) -> Iterator[tuple[str, str]]:
    """A pattern of `command flag` → its choices."""
    for name, flags in words.items():
        for flag, choices in flags.items():
            if choices:
                yield f'"{name} {flag}"', " ".join(choices)


def _fish(words: Words) -> str:
    lines = [f"complete -c boresight -n __fish_use_subcommand -f -a {shlex.quote(' '.join(words))}"]
    for name, flags in words.items():
        for flag, choices in flags.items():
            given = f" -x -a {shlex.quote(' '.join(choices))}" if choices else ""
            lines.append(
                f"complete -c boresight -n '__fish_seen_subcommand_from {name}' -l {flag.removeprefix('--')}{given}"
            )
    return "\n".join(lines)
