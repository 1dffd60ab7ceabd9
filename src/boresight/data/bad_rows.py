"""What becomes of rows that cannot be used: `on_bad_row`.

| policy | rows with a bad image | other bad rows |
|---|---|---|
| `error` | an error that names them, before training | the same |
| `drop` | left out | left out |
| `keep_text` | kept without their images, where the rest can be used | left out |

Rows that are left out or lose their images are listed, with the reason, in the quarantine file of the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boresight.data.check import Check, RowReport, examine
from boresight.data.sources import KeptRows, RowDataset
from boresight.errors import DataError
from boresight.files import write_whole

QUARANTINE = "quarantine.jsonl"
"""The file's name in the run folder: one line of JSON for each row that was set aside."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row that is not used as it is."""

    data_set: str
    """`train`, `eval`, or the name of one of several evaluation sets."""
    row: int
    """Its number in the data set as it was given."""
    done: str
    """`dropped` or `kept as text`."""
    reason: str


def usable_records(
    records: Any, report: RowReport, policy: str, *, name: str = "train", check: Check | None = None
) -> tuple[Any, list[SetAside]]:
    """The records that can be used under a policy, and the rows that were set aside.

    Args:
        records: a `datasets.Dataset` or a list of mappings.
        report: what was found about them.
        policy: `error`, `drop` or `keep_text`.
        name: what the quarantine file calls the data set.
        check: what also was asked of every row; rows without their images must meet it as well.

    Returns:
        The records; where rows were dropped, the others are numbered anew. With no bad row, the records as they came.

    Raises:
        DataError: some rows are bad under `error`, or none is left.
    """
    if policy == "error" or report.num_rows == 0:
        report.refuse()
    if not report.bad:
        return records, []
    as_text = _usable_as_text(records, report, check) if policy == "keep_text" else frozenset()
    kept = [row for row in range(report.num_rows) if row not in report.bad or row in as_text]
    if not kept:
        first = "\n".join(reason for reason, _ in list(report.bad.values())[:3])
        raise DataError(f"None of the {report.num_rows} rows of the data set {name!r} can be used:\n{first}")
    set_aside = [
        SetAside(name, row, "kept as text" if row in as_text else "dropped", reason)
        for row, (reason, _) in sorted(report.bad.items())
    ]
    if not as_text and hasattr(records, "select"):
        return records.select(kept), set_aside
    return KeptRows(records, kept, as_text), set_aside


def _usable_as_text(records: Any, report: RowReport, check: Check | None) -> frozenset[int]:
    """The bad rows that can be used without their images."""
    tried = [row for row, (_, is_image) in sorted(report.bad.items()) if is_image]
    again = examine(RowDataset(KeptRows(records, tried, tried)), check)
    return frozenset(row for place, row in enumerate(tried) if place not in again.bad)


def quarantine_summary(set_aside: Sequence[SetAside], path: Path) -> list[str]:
    """One line for each data set and what was done, with the number of rows."""
    counts = Counter((each.data_set, each.done) for each in set_aside)
    return [
        f"{count} rows of {name} were {done}: they are listed with their reasons in {path}."
        for (name, done), count in counts.items()
    ]


def write_quarantine(path: Path, set_aside: Sequence[SetAside]) -> None:
    """Write the quarantine file: one JSON object for each row."""
    write_whole(path, "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in set_aside))


class StreamQuarantine:
    """Adds the rows of a stream to the quarantine file as they come. It is called by `RowStream.set_aside`.

    Args:
        path: the file; None: rows are not written, as another process writes them.
        name: what the file calls the data set.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        self.path = path
        self.name = name
        self._seen: set[int] = set()

    def __call__(self, row: int, reason: str, done: str) -> None:
        if self.path is None or row in self._seen:  # a stream comes again in every epoch
            return
        self._seen.add(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(json.dumps(asdict(SetAside(self.name, row, done, reason)), ensure_ascii=False) + "\n")
