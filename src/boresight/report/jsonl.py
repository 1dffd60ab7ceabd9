"""A run's JSON Lines files: one object per line, each with the optimizer step that it belongs to."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boresight.files import write_whole


class StepLines:
    """A file to which lines with a `step` are appended; a resumed run appends to the same file.

    | file | content of a line |
    |---|---|
    | `RUN/metrics.jsonl` | one log call, with the names of the metric dictionary; also evaluations and the final summary |
    | `RUN/timeline.jsonl` | seconds of one step by phase |
    | `RUN/verdicts.jsonl` | `verdict` (its name) and `text`: why the run learns or does not |

    Args:
        path: the file; None writes none, as on all ranks but the first.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line. A number that is not finite becomes null, since JSON has none."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = {"step": step} | {name: _finite(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(line) + "\n")

    def discard_after(self, step: int) -> int:
        """Remove the lines of later steps before an interrupted run resumes at `step`, or with 0 before a new run starts.

        Returns:
            How many lines were removed.
        """
        if self.path is None or not self.path.exists():
            return 0
        lines = _lines(self.path)
        kept = [line for line in lines if _is_kept(line, step)]
        write_whole(self.path, "".join(kept))
        return len(lines) - len(kept)


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of such a file in the order they were written; none where there is no file.

    A last line that is only half written, as while the run goes on, is left out.
    """
    if not Path(path).exists():
        return []
    return [json.loads(line) for line in _lines(Path(path)) if line.endswith("\n")]


_BREAKS = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Characters that JSON allows in a string, and that end a line for some readers or cannot be encoded (half a surrogate pair)."""


def _json(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _lines(path: Path) -> list[str]:
    """The lines of a file with their ends. Only a line feed ends a line, which `str.splitlines` does not heed."""
    parts = path.read_text(encoding="utf-8").split("\n")
    return [f"{part}\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_kept(line: str, step: int) -> bool:
    # A run that was killed may have left half a line at the end.
    return line.endswith("\n") and json.loads(line)["step"] <= step
