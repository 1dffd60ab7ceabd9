"""The groups of a step that was not finite, kept in the run folder so that it can be replayed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from boresight.errors import DataError
from boresight.files import write_whole
from boresight.trainer.rollouts.scored import completion_from_state, completion_state
from boresight.types import Group, Prompt, Row

FOLDER = "nonfinite"
MAX_KEPT = 16
"""Files of one rank in a run; later steps are counted only."""


@dataclass(frozen=True, slots=True)
class KeptStep:
    """One rank's share of a step."""

    step: int
    """The number of the optimizer step, from 1."""
    what: str
    """What was not finite."""
    groups: Sequence[Group]
    options: Mapping[str, Any]
    """The run's options as plain values."""


def keep_step(
    run: str | Path, step: int, rank: int, *, what: str, items: Sequence[Any], options: Mapping[str, Any]
) -> Path | None:
    """Write a step's groups to RUN/nonfinite; returns the file, or None where enough are kept, or the disk has no room.

    Args:
        items: groups, or what has a `group`.
    """
    folder = Path(run) / FOLDER
    if len([*folder.glob(f"step_*.rank{rank}.pt")]) >= MAX_KEPT:
        return None
    groups = [_plain(getattr(item, "group", item)) for item in items]
    buffer = io.BytesIO()
    torch.save({"step": step, "what": what, "groups": groups, "options": dict(options)}, buffer)
    try:
        return write_whole(folder / f"step_{step:08d}.rank{rank}.pt", buffer.getvalue())
    except OSError:
        return None


def read_step(path: str | Path) -> KeptStep:
    """Read a file of `keep_step`.

    Raises:
        DataError: it is no such file, or damaged.
    """
    try:
        content = torch.load(path, weights_only=True)
        groups = [_group(group) for group in content["groups"]]
        return KeptStep(content["step"], content["what"], groups, content["options"])
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no such file. The log of the run names those in its folder {FOLDER}."
        ) from error
    except Exception as error:  # what torch raises for other files has no common class
        raise DataError(f"{path} is not a kept step, or it is damaged ({type(error).__name__}).") from error


def _plain(group: Group) -> dict[str, Any]:
    prompt = group.prompt
    return {
        "row": prompt.row.index,
        "ids": prompt.ids,
        "token_types": prompt.token_types,
        "unexpanded_ids": prompt.unexpanded_ids,
        "vision": dict(prompt.vision),
        "completions": [completion_state(each) for each in group.completions],
    }


def _group(content: Mapping[str, Any]) -> Group:
    row = Row(index=content["row"], prompt="", completions=(), images=(), columns={})
    prompt = Prompt(
        row=row,
        ids=content["ids"],
        token_types=content["token_types"],
        vision=content["vision"],
        unexpanded_ids=content["unexpanded_ids"],
    )
    return Group(prompt, tuple(map(completion_from_state, content["completions"])))
