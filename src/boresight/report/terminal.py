"""Completions printed to a terminal (`log_completions`)."""

from __future__ import annotations

import json
import random
from typing import Any

import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from boresight.report.turns import transcript
from boresight.terminal import printable

MAX_PROMPT_CHARS = 240
MAX_COMPLETION_CHARS = 400
"""Of a completion, or of each of its turns."""


def print_completions(rows: pa.Table, *, num_completions: int | None = None, console: Console | None = None) -> None:
    """Print completions under their prompts, with reward, advantage and the reward by each function.

    Args:
        rows: of one step, as `CompletionStore.add` returns them.
        num_completions: how many to show (`num_completions_to_print`), chosen by a generator of its own that the step
            seeds, so that printing does not change a run's random numbers. None shows all.
        console: where to; standard output by default.
    """
    shown = rows_to_show(rows, num_completions).to_pylist()
    if not shown:
        return
    parts: list[Any] = []
    for place in dict.fromkeys((row["rank"], row["group"]) for row in shown):
        group = [row for row in shown if (row["rank"], row["group"]) == place]
        parts += [_heading(group[0]), _group_table(group)]
    title = f"step {shown[0]['step']} · {shown[0]['phase']}"
    subtitle = f"{len(shown)} of {rows.num_rows} completions"
    (console or Console()).print(
        Panel(Group(*parts), title=title, title_align="left", subtitle=subtitle, subtitle_align="right")
    )


def rows_to_show(rows: pa.Table, num: int | None) -> pa.Table:
    """At most `num` of a step's rows, in their order, chosen by a generator that the step seeds; None: all."""
    if num is None or num >= rows.num_rows:
        return rows
    generator = random.Random(rows["step"][0].as_py())
    return rows.take(sorted(generator.sample(range(rows.num_rows), num)))


def _heading(row: dict[str, Any]) -> Text:
    images = len(row["images"])
    about = f"row {row['row']}" + (f", {images} image{'s' * (images > 1)}" if images else "")
    prompt = printable(row["prompt"]).strip("\n")
    cut = len(prompt) - MAX_PROMPT_CHARS
    tail = f"[{cut} characters before] …{prompt[cut:]}" if cut > 0 else prompt
    right = row.get("right_answer")
    known = "" if right is None else f"\nright answer: {_shortened(right)}"
    return Text.assemble((f"{about}\n", "bold"), (tail, "yellow"), (known, "bold green"))


def _group_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True, leading=1, pad_edge=False)
    table.add_column("reward", justify="right", style="bold cyan", no_wrap=True)
    if "advantage" in rows[0]:
        table.add_column("advantage", justify="right", style="magenta", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("completion", ratio=1, overflow="fold")
    for row in rows:
        numbers = [_number(row[name], signed=name == "advantage") for name in ("reward", "advantage") if name in row]
        length = f"{row['length']}{' cut' if row['truncated'] else ''}"
        table.add_row(*numbers, length, _completion(row))
    return table


def _completion(row: dict[str, Any]) -> Text:
    turns: list[dict[str, Any]] = json.loads(row.get("turns") or "[]")
    said = [(transcript([turn]), "cyan" if turn["role"] == "tool" else "green") for turn in turns]
    parts = [(text, style) for whole, style in said or [(row["completion"], "green")] if (text := _shortened(whole))]
    shown = Text("\n").join([Text(*part) for part in parts]) if parts else Text("(empty)", "dim")
    notes = [f"answer {_shortened(row['answer'])}"] if row.get("right_answer") is not None and row.get("answer") else []
    return Text.assemble(shown, ("\n" + " · ".join([*notes, _by_function(row)]), "dim"))


def _shortened(text: str) -> str:
    """A completion's text, or one of its turns, without its middle where it is long."""
    text = printable(text).strip("\n")
    cut = len(text) - MAX_COMPLETION_CHARS
    if cut <= 0:
        return text
    return f"{text[: MAX_COMPLETION_CHARS // 2]}… [{cut} characters] …{text[-MAX_COMPLETION_CHARS // 2 :]}"


def _by_function(row: dict[str, Any]) -> str:
    """The reward by each function, names without their common ending."""
    rewards = {name.partition("/")[2]: value for name, value in row.items() if name.startswith("rewards/")}
    return " · ".join(f"{printable(name.removesuffix('_reward'))} {_number(value)}" for name, value in rewards.items())


def _number(value: float | None, *, signed: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if signed else ''}.2f}"
