"""What parts report, and how it is kept and shown."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

Figures = dict[str, float | int | str | bool | None]


@dataclass(frozen=True, slots=True)
class Row:
    """The answer to one case of a part."""

    part: str
    case: str
    status: Literal["ok", "failed", "not run"]
    figures: Figures = field(default_factory=dict)
    """Name → value; the unit is part of the name."""
    note: str = ""
    """Why it failed or was not run."""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how large parts run."""

    device: torch.device
    tiny: bool
    """Small sizes: everything runs, figures mean nothing. Always so without CUDA."""

    @classmethod
    def here(cls, *, tiny: bool) -> Setting:
        cuda = torch.cuda.is_available()
        return cls(torch.device("cuda", 0) if cuda else torch.device("cpu"), tiny or not cuda)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32


class LackingError(Exception):
    """Something that this machine lacks; the message names it."""


class BoundError(Exception):
    """A figure outside its bound; the figures are kept."""

    def __init__(self, message: str, figures: Figures) -> None:
        super().__init__(message)
        self.figures = figures


Case = tuple[str, Callable[[], Figures]]
"""Name and measurement. A case that raises fails alone."""


def failed(part: str, case: str, note: str) -> Row:
    return Row(part, case, "failed", note=note)


def answer(part: str, case: str, measure: Callable[[], Figures]) -> Row:
    """Run a case; whatever it raises becomes its note."""
    try:
        return Row(part, case, "ok", measure())
    except LackingError as reason:
        return Row(part, case, "not run", note=str(reason))
    except BoundError as error:
        return Row(part, case, "failed", error.figures, str(error))
    except Exception as error:
        traceback.print_exc()
        return failed(part, case, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}")
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def run_part(name: str, cases: Callable[[Setting], Iterator[Case]], setting: Setting, file: Path) -> None:
    """Run the cases of a part, and add a line to `file` after each, so that a time limit loses only what was not done."""
    with file.open("w") as written:
        for case, measure in cases(setting):
            print(json.dumps(answer(name, case, measure).record()), file=written, flush=True)


def from_json(lines: str) -> list[Row]:
    """The rows of a part's file. A last line that was cut off is left out."""
    return [Row(**json.loads(line)) for line in lines.split("\n")[:-1]]


def markdown(rows: Iterable[Row]) -> str:
    """A table of rows."""
    lines = ["| part | case | status | figures |", "|---|---|---|---|"]
    for row in rows:
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in row.figures.items())
        text = "; ".join(filter(None, [shown, row.note])).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.part} | {row.case} | {row.status} | {text} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
