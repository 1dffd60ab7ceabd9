"""Every row read before the first step: by all cores, and once, because what was found is kept.

A row is read with its images' headers, and given to a further check. Nothing is raised while rows are checked: what is wrong is collected,
and `on_bad_row` decides what becomes of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch.utils.data
from datasets.utils import tqdm

from boresight.data.check_cache import CheckCache
from boresight.data.findings import row_findings
from boresight.data.schema import read_row
from boresight.errors import DataError, ImageError, UserError
from boresight.types import Row

MAX_NAMED = 10
MIN_PARALLEL = 1000
"""Rows from which on processes are started, and the result is kept."""
_CHUNK = 64
_LOG_EVERY_S = 30.0
"""Seconds between lines about progress in a log file; on a terminal the bar moves all the time."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a further check found about a good row."""

    num_tokens: int | None = None
    """Tokens of the prompt and of any completions in the row, at most; None: not counted."""
    is_decoded: bool = False
    """Whether its images were decoded, too."""
    findings: tuple[str, ...] = ()


Check = Callable[[Row], object]
"""Is called with every row, and raises a DataError for what is wrong beyond the record itself. It may return a `Checked`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found about one row."""

    row: int
    reason: str | None = None
    """Why the row cannot be used; None if it can."""
    is_image: bool = False
    """Whether the reason is an image."""
    num_images: int = 0
    checked: Checked = Checked()
    files: tuple[tuple[str, int, int], ...] = ()
    """Path, size and time of change of every file that it names."""
    digest: str = ""
    """`row_digest` of a row that can be used."""


@dataclass(slots=True)
class RowReport:
    """What was found about all rows of a data set."""

    num_rows: int = 0
    bad: dict[int, tuple[str, bool]] = field(default_factory=dict)
    """Row → why it cannot be used, and whether an image is the reason."""
    findings: dict[str, list[int]] = field(default_factory=dict)
    """What should be reported → the rows."""
    num_counted: int = 0
    """Rows whose tokens were counted."""
    num_decoded: int = 0
    """Rows whose images were decoded, too."""
    max_tokens: int = 0
    max_images: int = 0
    files: dict[str, list[Any]] = field(default_factory=dict)
    """Path of an image → its size, its time of change, and the list of the rows that name it."""
    lengths: list[int | None] = field(default_factory=list)
    """Tokens of every row, in order; None where it cannot be used, or they were not counted."""
    digests: list[str] = field(default_factory=list)
    """`row_digest` of every row, in order; empty where it cannot be used."""

    @property
    def digest(self) -> str:
        """The number of rows and a digest of all of them, for people to compare."""
        return f"{self.num_rows} rows, digest {hashlib.sha256(' '.join(self.digests).encode()).hexdigest()[:16]}"

    def add(self, outcome: Outcome) -> None:
        """Count one more row."""
        self.num_rows += 1
        self.digests.append("")
        self.lengths.append(None)
        self.note(outcome)

    def forget(self, rows: Collection[int]) -> None:
        """Drop what was found about some rows, which are looked at again."""
        for row in rows:
            self.bad.pop(row, None)
        kept = {text: [row for row in found if row not in rows] for text, found in self.findings.items()}
        self.findings = {text: found for text, found in kept.items() if found}

    def note(self, outcome: Outcome) -> None:
        """Take what was found about a row."""
        self.digests[outcome.row] = outcome.digest
        self.lengths[outcome.row] = outcome.checked.num_tokens if outcome.reason is None else None
        if outcome.reason is not None:
            self.bad[outcome.row] = (outcome.reason, outcome.is_image)
            return
        self.max_tokens = max(self.max_tokens, outcome.checked.num_tokens or 0)
        self.max_images = max(self.max_images, outcome.num_images)
        self.num_counted += outcome.checked.num_tokens is not None
        self.num_decoded += outcome.checked.is_decoded
        for text in outcome.checked.findings:
            self.findings.setdefault(text, []).append(outcome.row)
        for path, size, changed in outcome.files:
            known = self.files.get(path)
            if known is None or known[:2] != [size, changed]:
                known = self.files[path] = [size, changed, []]
            known[2].append(outcome.row)

    @property
    def summary(self) -> list[str]:
        """One line for each kind of finding, with its first rows."""
        return [f"{_counted(rows, self.num_rows)}: {text}." for text, rows in sorted(self.findings.items())]

    def refuse(self) -> None:
        """Raise what is wrong.

        Raises:
            DataError: some rows are bad, or there is none. The message counts them, and says of the first ten what is wrong.
        """
        if self.bad:
            named = [reason for _, (reason, _) in sorted(self.bad.items())[:MAX_NAMED]]
            rest = [f"… and {len(self.bad) - MAX_NAMED} more."] if len(self.bad) > MAX_NAMED else []
            raise DataError("\n".join([f"{len(self.bad)} of {self.num_rows} rows cannot be used:", *named, *rest]))
        if self.num_rows == 0:
            raise DataError("The data set has no rows.")


def examine(rows: Any, check: Check | None = None, *, key: str | None = None, workers: int | None = None) -> RowReport:
    """Read every row and collect what is found.

    Args:
        rows: a `RowDataset`, or a `RowStream`, of which every row is read here.
        check: called with every row.
        key: everything that the check depends on, beside the rows. With it, what was found is kept on disk, and the next call only looks
            again at rows that were bad, and at those whose images have changed. None: nothing is kept.
        workers: processes; None: one for each core, if there are many rows.

    Raises:
        UserError: what is wrong with no row alone, such as a processor without a chat template.
    """
    report = RowReport()
    if not hasattr(rows, "__len__"):
        for number, record in enumerate(rows.records):
            report.add(_outcome(partial(read_row, record, number), number, check))
        return report
    cache = CheckCache.of(rows.records, key) if key is not None and len(rows) >= MIN_PARALLEL else None
    known = None if cache is None else cache.load(RowReport)
    if cache is None or known is None:
        for outcome in _outcomes(rows, check, range(len(rows)), workers):
            report.add(outcome)
    else:
        report = known
        again = {*report.bad, *cache.changed(report.files)}
        report.forget(again)
        for outcome in _outcomes(rows, check, sorted(again), workers):
            report.note(outcome)
    if cache is not None:
        cache.save(report)
    return report


def _outcomes(rows: Any, check: Check | None, numbers: Sequence[int], workers: int | None) -> Iterator[Outcome]:
    """What was found about each of the rows, in order."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunks = _Chunks(rows, check, numbers)
    parallel = workers if workers > 1 and len(numbers) >= MIN_PARALLEL else 0
    loader: Iterable[Any] = torch.utils.data.DataLoader(chunks, batch_size=None, num_workers=parallel)
    with tqdm(
        total=len(numbers),
        desc="Checking rows",
        unit=" rows",
        disable=len(numbers) < MIN_PARALLEL,
        mininterval=0.1 if sys.stderr.isatty() else _LOG_EVERY_S,
    ) as bar:
        for found in loader:
            for outcome in found:
                if isinstance(outcome, UserError):
                    raise outcome
                yield outcome
            bar.update(len(found))


class _Chunks(torch.utils.data.Dataset[Any]):
    """The outcomes of some rows at a time, so that they cross between processes together."""

    def __init__(self, rows: Any, check: Check | None, numbers: Sequence[int]) -> None:
        self.rows, self.check, self.numbers = rows, check, numbers

    def __len__(self) -> int:
        return -(-len(self.numbers) // _CHUNK)

    def __getitem__(self, place: int) -> list[Outcome | UserError]:
        if place >= len(self):
            raise IndexError(place)
        try:
            return [
                _outcome(partial(self.rows.__getitem__, number), number, self.check)
                for number in self.numbers[place * _CHUNK : (place + 1) * _CHUNK]
            ]
        except UserError as error:  # of the set-up; raised where the outcomes are read
            return [error]


def _outcome(read: Callable[[], Row], number: int, check: Check | None) -> Outcome:
    try:
        row = read()
        found = check(row) if check is not None else None
    except DataError as error:
        return Outcome(number, reason=str(error), is_image=isinstance(error, ImageError))
    except UserError:
        raise
    except Exception as error:  # a row of a form that nobody thought of: still an error of this row, with its number
        return Outcome(
            number, reason=f"row {number} cannot be read ({type(error).__name__}: {error}). Correct it or drop it."
        )
    checked = found if isinstance(found, Checked) else Checked()
    findings = (*row_findings(row), *checked.findings)
    files = tuple(_state(image.source) for image in row.images if isinstance(image.source, str))
    checked = Checked(checked.num_tokens, checked.is_decoded, findings)
    return Outcome(number, num_images=len(row.images), checked=checked, files=files, digest=row_digest(row))


def row_digest(row: Row) -> str:
    """A digest of a row's texts, images and other columns, equal wherever the row is stored."""
    content = [row.prompt, row.completions, [image.digest for image in row.images], row.columns]
    text = json.dumps(_plain(content), sort_keys=True)
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A value as JSON has it, with keys that can be sorted. Of an unknown class the name alone, since its text may hold an address."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.tolist()
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in cast("Iterable[Any]", value)]
    return str(value) if type(value).__module__ in ("datetime", "decimal", "uuid") else type(value).__name__


def _state(path: str) -> tuple[str, int, int]:
    state = os.stat(path)  # noqa: PTH116 — a hundred thousand of them
    return path, state.st_size, state.st_mtime_ns


def _counted(rows: Sequence[int], num_rows: int) -> str:
    shown = ", ".join(map(str, rows[:MAX_NAMED])) + (", …" if len(rows) > MAX_NAMED else "")
    return f"{len(rows)} of {num_rows} rows ({shown})"
