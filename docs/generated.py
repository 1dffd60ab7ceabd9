"""What the reference draws from the code when the site is built.

A line `<!-- generated: options GRPOConfig -->` on a page is replaced by what `GENERATORS["options"]("GRPOConfig")` returns.
mkdocs calls `on_page_markdown` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src" / "boresight"
PLACE = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
ROOMS = ("data", "model", "rollout", "rewards", "advantage", "loss", "report", "trainer", "transformers")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page."""
    return PLACE.sub(lambda place: GENERATORS[place[1]](*place[2].split()), markdown)


# ---- Options --------------------------------------------------------------------------------------------------------------------


def options(config: str) -> str:
    """Every option of a configuration: one table per room, then what is refused and why."""
    import boresight

    cls = getattr(boresight, config)
    by_room: dict[str, list[Field[Any]]] = {room: [] for room in ROOMS}
    for option in fields(cls):
        if option.name not in cls.unsupported:
            by_room[room_of(cls, option.name)].append(option)
    parts = []
    for room, own in by_room.items():
        if own:
            title = "Of transformers' training loop" if room == "transformers" else f"Of the room `{room}`"
            rows = [(f"`{option.name}`", default_text(option), option.metadata["help"]) for option in own]
            parts += [f"## {title}", table(("option", "default", "meaning"), rows)]
    refused = [(f"`{name}`", reason) for name, reason in sorted(cls.unsupported.items())]
    parts += [
        "## Refused",
        "Anything but the default is an error, since it would not be heeded.",
        table(("option", "why"), refused),
    ]
    return "\n\n".join(parts)


def room_of(cls: type, option: str) -> str:
    """The room whose class declares the option; of several, the most derived."""
    home = next(base for base in cls.__mro__ if option in inspect.get_annotations(base))
    package, *path = home.__module__.split(".")
    return path[0] if package == "boresight" else package


def default_text(option: Field[Any]) -> str:
    value = option.default_factory() if option.default_factory is not MISSING else option.default
    return f"`{getattr(value, 'value', value)!r}`"


# ---- Errors ---------------------------------------------------------------------------------------------------------------------


def errors() -> str:
    """The tree of exceptions, as its module draws it."""
    from boresight import errors as module

    _, _, tree = (module.__doc__ or "").partition("\n\n")
    return f"```text\n{tree.strip()}\n```"


# ---- Command line ---------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its flags, from what reads them."""
    from boresight.cli import TRAINING, _parser
    from boresight.cli.methods import METHODS

    _, parsers = _parser()
    trains, *others = (set(method.classes()) for method in METHODS.values())
    shared = [cls for cls in METHODS["sft"].classes() if all(cls in classes for classes in others) and cls in trains]
    parts = ["## Training commands", f"{listed([f'`boresight {name}`' for name in TRAINING])} share these."]
    parts += [text for cls in shared for text in (f"**{sentence(cls)}**", flags_of(cls))]
    for name, method in METHODS.items():
        parts += [f"## boresight {name}", f"{sentence_case(method.help)}."]
        parts += [text for cls in method.own for text in (f"**{sentence(cls)}**", flags_of(cls))]
        config = method.config_class()
        page = f"{config.__name__.removesuffix('Config').lower()}-config.md"
        parts.append(f"… and every option of [{config.__name__}]({page}) as a flag, `--like_this` or `--like-this`.")
    for name, parser in parsers.items():
        parts += [f"## boresight {name}", f"{sentence_case(parser.description or '')}.", *flag_tables(parser)]
        parts += [parser.epilog] if parser.epilog else []
    return "\n\n".join(parts)


def flags_of(cls: type) -> str:
    rows = [(f"`--{option.name}`", default_text(option), option.metadata["help"]) for option in fields(cls)]
    return table(("flag", "default", "meaning"), rows)


def sentence(cls: type) -> str:
    """The first line of a docstring, as a heading."""
    return inspect.cleandoc(cls.__doc__ or "").splitlines()[0].removesuffix(".")


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:].removesuffix(".")


def listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def flag_tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """One table per group of an argparse parser."""
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != "help"]
        if shown:
            yield f"**{sentence_case(group.title or '')}**"
            yield table(("flag", "default", "meaning"), [flag_row(action) for action in shown])


def flag_row(action: argparse.Action) -> tuple[str, str, str]:
    name = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.dest}`"
    default = "" if action.default in (None, argparse.SUPPRESS) else f"`{action.default}`"
    help_text = (
        (action.help or "") % {"default": action.default} if "%(default)s" in (action.help or "") else action.help or ""
    )
    return name, default, help_text.replace("%%", "%")


# ---- Papers ---------------------------------------------------------------------------------------------------------------------


def presets() -> str:
    """Every preset's values, each with its place in the paper."""
    from boresight.trainer.presets import PRESETS

    parts = []
    for name, settings in PRESETS.items():
        rows = [(f"`{option}`", f"`{setting.value!r}`", linked(setting.source)) for option, setting in settings.items()]
        parts += [f"### {name}", table(("option", "value", "where it is from"), rows)]
    return "\n\n".join(parts)


def losses(rows: str) -> str:
    """Every value of `loss_type` and its paper.

    Args:
        rows: the table: `OBJECTIVES` or `PREFERENCES`.
    """
    from boresight.loss import objectives

    found = [(f"`{name}`", linked(row.source)) for name, row in getattr(objectives, rows).items()]
    return table(("`loss_type`", "paper"), found)


def papers() -> str:
    """Every paper that the code names: its title, and what of it is here."""
    titles: dict[str, str] = json.loads((Path(__file__).parent / "papers.json").read_text())
    named = named_papers()
    if unknown := named.keys() - titles.keys():
        raise ValueError(f"docs/papers.json has no title for {', '.join(sorted(unknown))}")
    rows = [
        (f"[{paper}](https://arxiv.org/abs/{paper})", title, ", ".join(f"`{place}`" for place in named[paper]))
        for paper, title in sorted(titles.items())
        if paper in named
    ]
    return table(("arXiv", "title", "what of it is here"), rows)


def named_papers() -> dict[str, list[str]]:
    """arXiv number → the functions, classes and files under `src` whose text names it."""
    named: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text()
        spans = list(definitions(text))
        for found in ARXIV.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            inside = [name for name, first, last in spans if first <= line <= last]
            place = inside[-1] if inside else str(file.relative_to(SOURCE))
            if place not in named.setdefault(found[1], []):
                named[found[1]].append(place)
    return named


def definitions(source: str) -> Iterator[tuple[str, int, int]]:
    """Name, first and last line of every function, class and documented value of a module, outer before inner."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno, node.end_lineno or node.lineno
        elif isinstance(node, ast.Module):
            for value, text in zip(node.body, node.body[1:], strict=False):
                # A string under an assignment is its documentation.
                if isinstance(value, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr):
                    target = value.target if isinstance(value, ast.AnnAssign) else value.targets[0]
                    yield ast.unparse(target), value.lineno, text.end_lineno or text.lineno


def linked(text: str) -> str:
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


# ---- Tables ---------------------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)


def cell(text: str) -> str:
    """One line, with what would end a cell or open a tag escaped."""
    return inspect.cleandoc(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


GENERATORS: dict[str, Callable[..., str]] = {
    "options": options,
    "errors": errors,
    "commands": commands,
    "presets": presets,
    "losses": losses,
    "papers": papers,
}
