"""The parts of the reference that are generated from the code when the site is built.

A line `<!-- generated: options GRPOConfig -->` on a page is replaced by what `GENERATORS["options"]("GRPOConfig")` returns.
mkdocs calls `on_page_markdown` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boresight.options import Declaration

SOURCE = Path(__file__).parents[1] / "src" / "boresight"
PLACE = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page."""
    return PLACE.sub(lambda place: GENERATORS[place[1]](*place[2].split()), markdown)


# ---- Options --------------------------------------------------------------------------------------------------------------------


def options(config: str) -> str:
    """Every option of a configuration: one table per room and per section of transformers', then what is refused and why."""
    from boresight.cli.help import by_heading
    from boresight.trainer import options as methods
    from boresight.trainer.training_arguments import with_training_arguments

    cls = getattr(methods, config.replace("Config", "Options"))
    declared = {each.name: each for each in with_training_arguments(cls)}
    parts = []
    for heading, names in by_heading(declared.values(), cls.unsupported).items():
        title = f"{heading.capitalize()} options" if (SOURCE / heading).is_dir() else f"{heading} (transformers)"
        parts += [f"## {title}", option_table("option", [declared[name] for name in names])]
    refused = [(f"`{name}`", reason) for name, reason in sorted(cls.unsupported.items())]
    parts += [
        "## Refused",
        "Any value but the default is an error, since it would have no effect.",
        table(("option", "why"), refused),
    ]
    return "\n\n".join(parts)


def option_table(what: str, declared: Iterable[Declaration], prefix: str = "") -> str:
    rows = [(f"`{prefix}{each.name}`", default_text(each), meaning(each)) for each in declared]
    return table((what, "default", "meaning"), rows)


def default_text(declared: Declaration) -> str:
    return f"`{declared.default!r}`"


def meaning(declared: Declaration) -> str:
    """What an option does, the values that it may have, and what it needs to have an effect."""
    parts = [declared.help]
    if declared.choices:
        parts.append(f"One of {', '.join(f'`{choice}`' for choice in declared.choices)}.")
    if declared.range is not None:
        parts.append(f"{str(declared.range).capitalize()}.")
    if declared.needs:
        parts.append(f"Needs {' and '.join(f'`{need.condition}`' for need in declared.needs)}.")
    if declared.source is not None:
        parts.append(f"{linked(declared.source)}.")
    return " ".join(parts)


# ---- Errors ---------------------------------------------------------------------------------------------------------------------


def errors() -> str:
    """The tree of exceptions, from the docstring of its module."""
    from boresight import errors as module

    _, _, tree = (module.__doc__ or "").partition("\n\n")
    return f"```text\n{tree.strip()}\n```"


# ---- Command line ---------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its flags, from what reads them."""
    from boresight.cli import TRAINING, _parser
    from boresight.cli.methods import METHODS

    _, parsers = _parser()
    own = {cls for method in METHODS.values() for cls in method.own}
    shared = [cls for cls in METHODS["sft"].flags() if cls not in own]
    parts = ["## Training commands", f"{listed([f'`boresight {name}`' for name in TRAINING])} share these."]
    parts += [text for cls in shared for text in (f"**{sentence(cls)}**", flags_of(cls))]
    for name, method in METHODS.items():
        parts += [f"## boresight {name}", f"{sentence_case(method.help)}."]
        parts += [text for cls in method.own for text in (f"**{sentence(cls)}**", flags_of(cls))]
        page = f"{method.config.removesuffix('Config').lower()}-config.md"
        parts.append(f"… and every option of [{method.config}]({page}) as a flag, `--like_this` or `--like-this`.")
    for name, parser in parsers.items():
        parts += [f"## boresight {name}", f"{sentence_case(parser.description or '')}.", *flag_tables(parser)]
        parts += [parser.epilog] if parser.epilog else []
    return "\n\n".join(parts)


def flags_of(cls: type) -> str:
    from boresight.options import declarations

    return option_table("flag", declarations(cls), prefix="--")


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
        parts += [f"### {name}", table(("option", "value", "source"), rows)]
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
    """Every paper that the code names: its title, and the code that uses it."""
    titles: dict[str, str] = json.loads((Path(__file__).parent / "papers.json").read_text())
    named = named_papers()
    if unknown := named.keys() - titles.keys():
        raise ValueError(f"docs/papers.json has no title for {', '.join(sorted(unknown))}")
    rows = [
        (f"[{paper}](https://arxiv.org/abs/{paper})", title, ", ".join(f"`{place}`" for place in named[paper]))
        for paper, title in sorted(titles.items())
        if paper in named
    ]
    return table(("arXiv", "title", "used in"), rows)


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
    """One line, with what would end a cell, or open a tag outside of code, escaped."""
    line = inspect.cleandoc(text).replace("\n", " ").replace("|", "\\|")
    return re.sub(r"(`+)(.+?)\1(?!`)|<", lambda found: found[0] if found[1] else "&lt;", line)


# ---- Rewards --------------------------------------------------------------------------------------------------------------------


READS = {"solution": "`solution`", "bbox": "`bbox`, an image", "completion_ids": ""}
"""Columns of the data set that built-in rewards read."""


def rewards(kind: str) -> str:
    """The built-in rewards: their names, what they pay, and the columns that they need. `kind`: named, or made (by a `get_…` function)."""
    import boresight.rewards as module
    from boresight.rewards.function import BUILT_IN

    names = list(BUILT_IN) if kind == "named" else [name for name in module.__all__ if name.startswith("get_")]
    rows = []
    for name in sorted(names):
        func = getattr(module, name)
        needs = [READS[each] for each in inspect.signature(func).parameters if each in READS] if kind == "named" else []
        first = " ".join(inspect.cleandoc(func.__doc__ or "").partition("\n\n")[0].split())
        rows.append((f"`{name}`", ", ".join(filter(None, needs)) or "—", code_spans(first)))
    if kind == "named":
        return table(("reward", "columns", "what it pays"), rows)
    return table(("makes a reward", "what it pays"), [(name, meaning) for name, _, meaning in rows])


def answers() -> str:
    """What an answer may look like: docs/answers.json, every line of which tests/rewards/test_forms.py tries."""
    forms = json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))
    rows = [
        (f"`{form['reward']}`", form["kind"], code(form["gold"]), cells(form["right"]), cells(form["wrong"]))
        for form in forms
    ]
    return table(("reward", "kind", "solution or bbox", "right, among others", "less than full marks"), rows)


def cells(texts: Iterable[str]) -> str:
    return ", ".join(map(code, texts))


def code(value: Any) -> str:
    """A value as code in a cell of a table, line breaks shown."""
    text = (value if isinstance(value, str) else json.dumps(value)).replace("\n", "⏎")
    fence = "``" if "`" in text else "`"
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_spans(text: str) -> str:
    """A docstring's sentence in a cell: reStructuredText's double backticks as Markdown's single ones."""
    return text.replace("``", "`")


GENERATORS: dict[str, Callable[..., str]] = {
    "options": options,
    "errors": errors,
    "commands": commands,
    "presets": presets,
    "losses": losses,
    "papers": papers,
    "rewards": rewards,
    "answers": answers,
}
