"""What a check of rows found, kept on disk: by the content of the rows, and of everything that the check depends on.

An image in a file counts as unchanged while its size and its time of change are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets

from boresight.files import write_whole
from boresight.types import EncodedImage

Report = TypeVar("Report")

_MAX_FILES = 50
"""Results that are kept; the oldest are removed."""


def cache_folder() -> Path:
    """Where results are kept: BORESIGHT_CACHE, or .cache/boresight in the home folder."""
    return Path(os.environ.get("BORESIGHT_CACHE") or "~/.cache/boresight").expanduser() / "rows"


@dataclass(frozen=True, slots=True)
class CheckCache:
    """The file of one result."""

    path: Path

    @classmethod
    def of(cls, records: Any, key: str) -> CheckCache | None:
        """The file for these records and this check; None if the records' content cannot be told."""
        content = content_digest(records)
        if content is None:
            return None
        name = hashlib.sha256(f"{content} {key} {_code()}".encode()).hexdigest()[:32]
        return cls(cache_folder() / f"{name}.json")

    def load(self, make: Callable[..., Report]) -> Report | None:
        """The result as `make(**fields)`; None if there is none that can be read."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(self.path.read_text())
            stored["bad"] = {int(row): tuple(why) for row, why in stored["bad"].items()}
            return make(**stored)
        return None

    def save(self, report: Any) -> None:
        """Keep a result. Where nothing can be written, nothing is kept: the rows are checked again next time."""
        with suppress(OSError):
            write_whole(self.path, json.dumps(asdict(report)))
            kept = sorted(self.path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            for path in kept[:-_MAX_FILES]:
                path.unlink(missing_ok=True)

    @staticmethod
    def changed(files: Mapping[str, Sequence[Any]]) -> Iterator[int]:
        """The rows whose images' files are not as they were.

        Args:
            files: path → size, time of change, rows.
        """
        for path, (size, changed, rows) in files.items():
            try:
                state = os.stat(path)  # noqa: PTH116 — a hundred thousand of them
            except OSError:
                yield from rows
                continue
            if (state.st_size, state.st_mtime_ns) != (size, changed):
                yield from rows


def content_digest(records: Any) -> str | None:
    """A digest of the records' content; None if it holds something whose content cannot be told."""
    if isinstance(records, datasets.Dataset):
        return records._fingerprint if records.format["type"] is None else None
    digest = hashlib.sha256()
    try:
        for record in records:
            digest.update(json.dumps(record, default=_content, sort_keys=True).encode())
    except TypeError:
        return None
    return digest.hexdigest()


def _content(value: Any) -> Any:
    if isinstance(value, EncodedImage):
        return value.digest
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"the content of a {type(value).__name__} is not known")


def _code() -> str:
    """A digest of the code that reads rows: another version may find other things."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()
