"""Checks of rows before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boresight.data.bad_rows import SetAside, quarantine_summary, usable_records, write_quarantine
from boresight.data.check import Checked, RowReport, examine
from boresight.data.encode import Encoder
from boresight.data.findings import control_findings, rewriting_findings
from boresight.data.images import decode
from boresight.data.sources import rows_of
from boresight.errors import DataError
from boresight.ranks import on_first_rank
from boresight.trainer.fingerprint import processor_digest, template_digest
from boresight.trainer.loading import is_stream
from boresight.types import Group, Prompt, Row

Encoding = Callable[[Encoder, Row], Any]
"""How a method makes a prompt or a group of a row."""

REWARD_ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
"""Arguments of reward functions that no column may be named like."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The largest sizes in some data sets. None: not all rows could be measured before training."""

    max_prompt_tokens: int | None
    """Tokens of the prompt and of any completions in the row."""
    max_images: int | None

    @classmethod
    def of(cls, reports: Sequence[RowReport | None]) -> Extent:
        """The extent over several data sets; None stands for one that can only be iterated."""
        if not reports or any(report is None for report in reports):
            return cls(None, None)
        known = [report for report in reports if report is not None]
        complete = all(report.num_counted >= report.num_rows - len(report.bad) for report in known)
        tokens = max(report.max_tokens for report in known)
        return cls(tokens if complete else None, max(report.max_images for report in known))


class RowCheck:
    """Encodes a row as training will, with its images' tokens counted from their sizes, and decodes its images while there is time.

    A row whose length only its pixels decide is encoded in full. So is every row with images if the processor cannot count their tokens;
    then, too, only while there is time.

    Args:
        encoder: the encoder of training.
        encoding: how the method encodes a row; None: only count its tokens.
        seconds: time limit of all work on pixels, in each process.
    """

    def __init__(self, encoder: Encoder, encoding: Encoding | None = None, *, seconds: float = 20.0) -> None:
        self.encoder = encoder
        self.encoding = _counted if encoding is None else encoding
        self.seconds = seconds
        self._sized = encoder.sized()
        self._decoded: set[str] = set()

    def __call__(self, row: Row) -> Checked:
        findings = control_findings(row, self.encoder.texts.control)
        if row.images and not self.encoder.counts_by_size and self.seconds <= 0:
            return Checked(findings=tuple(findings))
        encoded = self._encoded(row)
        if isinstance(encoded, Group):
            findings += rewriting_findings(row, encoded, self.encoder.texts)
        return Checked(_num_tokens(encoded), self._decodes(row), tuple(findings))

    def _encoded(self, row: Row) -> Prompt | Group | int:
        start = time.perf_counter()
        try:
            return self.encoding(self._sized, row)
        except DataError:  # too long by a count that may be too high, or bad in any case: the row itself decides
            return self.encoding(self.encoder, row)
        finally:
            if not self.encoder.counts_by_size:
                self.seconds -= time.perf_counter() - start

    def _decodes(self, row: Row) -> bool:
        """Decode the images that were not decoded before; False where no time is left."""
        start = time.perf_counter()
        for place, image in enumerate(row.images):
            if image.digest in self._decoded:
                continue
            if self.seconds <= 0:
                return False
            decode(image, where=f"row {row.index}, image {place}")
            self._decoded.add(image.digest)
        self.seconds -= time.perf_counter() - start
        return True


def _counted(encoder: Encoder, row: Row) -> int:
    return encoder.count_tokens(row)


def _num_tokens(encoded: Prompt | Group | int) -> int:
    if isinstance(encoded, int):
        return encoded
    return len(encoded.ids) if isinstance(encoded, Prompt) else encoded.num_tokens


def reward_prompt(encoder: Encoder, row: Row) -> Prompt:
    """The prompt of a row whose columns are passed to reward functions.

    Raises:
        DataError: a column has the name of another argument, or as `Encoder.prompt`.
    """
    if taken := [name for name in REWARD_ARGUMENTS if name in row.columns]:
        raise DataError(
            f"row {row.index}: the column {taken[0]!r} has a name under which reward functions are passed something else: rename it."
        )
    return encoder.prompt(row)


def check_key(encoder: Encoder, encoding: Encoding) -> str:
    """Everything that a `RowCheck` depends on, beside the row."""
    options = (getattr(encoding, "func", encoding).__qualname__, getattr(encoding, "keywords", {}))
    texts = encoder.texts
    template = template_digest(encoder.processor, encoder.tokenizer, texts.chat_template_kwargs)
    sizes = (encoder.max_prompt_length, encoder.facts)
    parts = (processor_digest(encoder.processor), template, *sizes, options, *([texts.tools] if texts.tools else []))
    return repr(parts)


def row_lengths(encoder: Encoder, records: Any) -> RowReport:
    """The tokens of every row, from texts and image sizes alone and before any cut: `RowReport.lengths`. Kept on disk by content."""
    return examine(rows_of(records), RowCheck(encoder, seconds=0), key=check_key(encoder, _counted))


class DataCheck:
    """Checks the data sets of a run before training, and keeps what can be used.

    Args:
        encoder: the encoder of training.
        encoding: what every row must allow.
        on_bad_row: `DataOptions.on_bad_row`.
        log_once: prints a line on one rank.
    """

    def __init__(self, encoder: Encoder, encoding: Encoding, on_bad_row: str, log_once: Callable[[str], None]) -> None:
        self.encoder, self.encoding = encoder, encoding
        self.on_bad_row = on_bad_row
        self.log_once = log_once
        self.set_aside: list[SetAside] = []
        self._reports: dict[str, RowReport | None] = {}

    def usable(self, records: Any, name: str) -> Any:
        """The records that can be used; of a plain dict of data sets, those of each. Every rank must call this, and all get the same.

        Raises:
            DataError: rows are bad and `on_bad_row` is `error`, or none can be used.
        """
        if records is None:
            return None
        if isinstance(records, dict):
            return {key: self.usable(part, f"{name}/{key}") for key, part in records.items()}
        if is_stream(records):
            self._reports[name] = None
            return records
        check = RowCheck(self.encoder, self.encoding)
        key = check_key(self.encoder, self.encoding)
        report = on_first_rank(lambda: examine(rows_of(records), check, key=key))
        self._reports[name] = report
        for line in report.summary:
            self.log_once(f"{name}: {line}")
        kept, set_aside = usable_records(records, report, self.on_bad_row, name=name, check=check)
        self.set_aside += set_aside
        if report.num_decoded < report.num_rows - len(report.bad):
            self.log_once(
                f"{name}: the images of {report.num_decoded} of {report.num_rows} rows were decoded before training, the others were "
                "checked by their headers."
            )
        return kept

    @property
    def extent(self) -> Extent:
        return Extent.of([*self._reports.values()])

    def digest_of(self, name: str) -> str | None:
        """A digest of all rows of a checked data set; None for a stream, or if there is none of this name."""
        report = self._reports.get(name)
        return None if report is None else report.digest

    def write(self, path: Path | None) -> None:
        """Write the quarantine file if rows were set aside, and say so; None: on this rank nothing is written."""
        if self.set_aside and path is not None:
            write_quarantine(path, self.set_aside)
            for line in quarantine_summary(self.set_aside, path):
                self.log_once(line)
