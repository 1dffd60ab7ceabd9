"""The output of `--help`, `--help TOPIC` and `--help-all` of a training command."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from boresight.cli.methods import Method, first_options, options_of
from boresight.errors import ConfigError, nearest
from boresight.options import Declaration

ORDER = (
    "model", "adapter (LoRA)", "data", "rollout", "tools", "rewards", "advantage", "loss", "trainer", "report", "start",
)  # fmt: skip
"""Headings of `--help-all`: the rooms in the order of the data flow. transformers' headings follow in their own order."""

MAX_CHOICES = 48
"""Maximum length, in characters, of a list of choices after its flag."""
WIDTH = 79
"""Columns of `--help`."""
INDENT = 24


def help_text(method: Method, command: str, *, everything: bool) -> str:
    """The output of `--help` or `--help-all`.

    Args:
        command: the command as typed.
    """
    options = options_of(method.name)
    sections = by_heading(options.values(), method.unsupported) if everything else first_options(method)
    blocks = [f"usage: {command} {_usage(options)}", f"{method.help[:1].upper()}{method.help[1:]}."]
    for title, names in sections.items():
        blocks.append("\n".join([f"{title}:", *(line for name in names for line in described(options[name]))]))
    closing = "Every option can also be written with hyphens, --like-this. "
    if everything:
        closing += f"Options that are refused, each with a reason: {', '.join(sorted(method.unsupported))}."
    else:
        shown = {name for names in sections.values() for name in names}
        closing += f"{len(options.keys() - method.unsupported.keys() - shown)} more options: {command} --help-all; about one thing: "
        closing += f"{command} --help {method.topic}."
        blocks.append("\n".join(["examples:", *examples(method, command)]))
    return "\n\n".join([*blocks, textwrap.fill(closing, WIDTH)]) + "\n"


def examples(method: Method, command: str) -> Iterator[str]:
    """Commands to start from, wrapped as a shell takes them."""
    for line in method.examples:
        wrapped = textwrap.wrap(f"{command} {line}", WIDTH - 4, break_on_hyphens=False, break_long_words=False)
        yield from textwrap.indent(" \\\n  ".join(wrapped), "  ").splitlines()


def help_topic(words: Sequence[str]) -> str:
    """The word after `--help` or `-h`, if one follows: what the help is asked about."""
    place = next((place for place, word in enumerate(words) if word in ("-h", "--help")), len(words))
    following = words[place + 1 : place + 2]
    return "" if not following or following[0].startswith("-") else following[0]


def help_about(method: Method, command: str, topic: str) -> str:
    """The options whose heading or name has the topic in it, or whose help has it as a word.

    Raises:
        ConfigError: there is none; the message lists the headings.
    """
    options = options_of(method.name)
    headings = by_heading(options.values(), method.unsupported)
    wanted = topic.lower().lstrip("-").replace("-", "_")

    def is_about(name: str, heading: str) -> bool:
        words = re.findall(r"\w+", options[name].help.lower())
        return wanted in heading.lower() or wanted in name.lower() or wanted in words

    found = {
        heading: about
        for heading, names in headings.items()
        if (about := [name for name in names if is_about(name, heading)])
    }
    if not found:
        known = [*headings, *(name for names in headings.values() for name in names)]
        raise ConfigError(
            f"no option of {command} is about {topic!r}.{nearest(topic, known)} Headings: {', '.join(headings)}."
        )
    blocks = [
        "\n".join([f"{heading}:", *(line for name in names for line in described(options[name]))])
        for heading, names in found.items()
    ]
    return "\n\n".join(blocks) + "\n"


def _usage(options: Mapping[str, Declaration]) -> str:
    needed = ["model_name_or_path", "dataset_name", "reward_funcs"]
    return " ".join([*(f"--{name} {value_text(options[name])}" for name in needed if name in options), "…"])


def by_heading(options: Iterable[Declaration], unsupported: Mapping[str, str]) -> dict[str, list[str]]:
    """Heading → options that are not refused."""
    headings: dict[str, list[str]] = {heading: [] for heading in ORDER}
    for declared in options:
        if declared.name not in unsupported:
            headings.setdefault(declared.heading, []).append(declared.name)
    return {heading: names for heading, names in headings.items() if names}


def described(declared: Declaration) -> Iterator[str]:
    """The lines of one option: its flag, followed by its help on the same line or below."""
    words, is_on = declared.help, declared.default is True
    value = value_text(declared)
    if declared.choices and not value.startswith("{"):
        words = f"{words} One of {', '.join(declared.choices)}."
    if declared.default not in (None, False, "") and not is_on:
        words = f"{words} [{default_text(declared.default)}]"
    if is_on:
        words = f"Switch off: {words[:1].lower()}{words[1:]}" if words[1:2].islower() else f"Switch off: {words}"
    flag = f"  --{'no_' if is_on else ''}{declared.name} {'' if is_on else value}".rstrip()
    lines = textwrap.wrap(words, WIDTH - INDENT, break_on_hyphens=False)
    if len(flag) <= INDENT - 2:
        yield f"{flag:<{INDENT}}{lines[0]}"
        lines = lines[1:]
    else:
        yield flag
    yield from (" " * INDENT + line for line in lines)


def default_text(default: object) -> str:
    return " ".join(map(str, cast("list[object]", default))) if isinstance(default, list) else str(default)


def value_text(declared: Declaration) -> str:
    """The placeholder for the option's value; empty for a switch."""
    if declared.is_switch:
        return "true|false" if declared.allows_none else ""
    value = _value(declared)
    return f"{value} [{value} …]" if declared.takes_list else value


def _value(declared: Declaration) -> str:
    if declared.metavar:
        return declared.metavar
    if declared.choices:
        listed = "{" + ",".join(declared.choices) + "}"
        return listed if len(listed) <= MAX_CHOICES else "NAME"
    if declared.is_json:
        return "JSON"
    kinds = {int: "N", float: "X"}
    return next((kinds[kind] for kind in declared.elements if kind in kinds), "TEXT")
