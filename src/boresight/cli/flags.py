"""A command-line parser built from option declarations, with helpful errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, cast

from boresight.cli.options import NOT_HERE
from boresight.errors import ConfigError, nearest
from boresight.options import Declaration

WORDS = {"yes": True, "true": True, "t": True, "y": True, "1": True,
         "no": False, "false": False, "f": False, "n": False, "0": False}  # fmt: skip


class FlagParser(argparse.ArgumentParser):
    """A parser of declared options. Every option has two spellings, `--like_this` and `--like-this`.

    Args:
        command: the command as typed, for messages.
        options: name → declaration.
        hidden: options that exist but are refused, and that no error suggests.
    """

    def __init__(self, command: str, options: Mapping[str, Declaration], *, hidden: Collection[str] = ()) -> None:
        super().__init__(prog=command, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.options = options
        self.hidden = hidden
        for declared in options.values():
            self._add(declared)

    def _add(self, declared: Declaration) -> None:
        how: dict[str, Any] = {"dest": declared.name, "type": reader(declared)}
        if declared.takes_list:
            how["nargs"] = "+"
        elif bool in declared.kinds:  # --bf16 alone means true
            how |= {"nargs": "?", "const": True}
        self.add_argument(*spellings(declared.name), *declared.aliases, **how)
        if declared.is_switch and declared.default is True:
            self.add_argument(*spellings(f"no_{declared.name}"), dest=declared.name, action="store_false")

    def error(self, message: str) -> NoReturn:
        """Raise argparse's own errors as `ConfigError`."""
        sentence = message.removeprefix("argument ").rstrip(".")
        raise ConfigError(f"{sentence}{'' if sentence.endswith('?') else '.'} See {self.prog} --help.")

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """Option → value, for the options that the words set.

        Raises:
            ConfigError: a flag does not exist (the message suggests the nearest), or a value has the wrong type.
        """
        found, unknown = self.parse_known_args(list(words))
        if unknown:
            raise ConfigError(self._unknown(unknown[0]))
        return {name: self._single(name, value) for name, value in vars(found).items()}

    def _single(self, name: str, value: Any) -> Any:
        """A list of one word as that word, if the option also accepts a single word; a list of one None as None."""
        if not isinstance(value, list):
            return value
        given = cast("list[Any]", value)
        takes_word = len(given) == 1 and (given[0] is None or str in self.options[name].kinds)
        return given[0] if takes_word else given

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option of {self.prog}: options start with --."
        flag = word.split("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        if name in NOT_HERE:
            return f"{flag} is an option of TRL that boresight does not have: {NOT_HERE[name]}."
        known = [name for name in self.options if name not in self.hidden]
        return f"{self.prog} has no option {flag}.{nearest_flag(name, known)} All of them: {self.prog} --help-all."


def spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def reader(declared: Declaration) -> Callable[[str], Any]:
    """The function that converts a word to a value."""
    kinds = declared.elements
    if declared.choices:
        read = one_of(declared.choices)
    elif declared.is_switch:
        read = true_or_false
    elif bool in kinds:
        read = name_or_switch
    else:
        read = next((kind for kind in (str, int, float) if kind in kinds), str)
    # For free text, "None" may be a name.
    takes_none = declared.allows_none and (declared.choices or str not in declared.kinds)
    return or_none(read) if takes_none else read


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A reader that accepts only the given words, also capitalised, as in TRL's `--scale_rewards False`."""

    def read(word: str) -> str:
        if found := next((choice for choice in (word, word.lower()) if choice in choices), None):
            return found
        raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(choices)}.{nearest(word, choices)}")

    return read


def true_or_false(word: str) -> bool:
    if word.lower() not in WORDS:
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return WORDS[word.lower()]


def name_or_switch(word: str) -> str | bool:
    return {"true": True, "false": False}.get(word.lower(), word)


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader that also accepts the word None."""

    def read_or_none(word: str) -> Any:
        return None if word.lower() in ("none", "null") else read(word)

    read_or_none.__name__ = read.__name__  # argparse names it: "invalid int value"
    return read_or_none


def nearest_flag(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown flag, in the spelling of the command line."""
    hint = nearest(name, known)
    return hint.replace("'", "--", 1).replace("'", "", 1)
