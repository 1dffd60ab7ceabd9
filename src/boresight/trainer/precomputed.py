"""Reference log-probabilities, computed once and stored on disk with a fingerprint of everything that they depend on (`fingerprint`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers.utils import logging

from boresight.data.sources import RowDataset
from boresight.errors import ConfigError
from boresight.files import write_whole
from boresight.trainer.loading import is_stream
from boresight.types import PerSequence, Row


def sample_digest(row: Row) -> str:
    """SHA-256 of the inputs of a pair's log-probabilities: its texts, its images' bytes, its template variables."""
    parts = [row.prompt, *row.completions, row.columns.get("chat_template_kwargs")]
    text = json.dumps(parts, sort_keys=True, default=str) + "".join(image.digest for image in row.images)
    return hashlib.sha256(text.encode()).hexdigest()


class PrecomputedReference:
    """`completion_logps` of pairs under the reference, by the digest of their samples.

    Args:
        fingerprint: everything that the entries depend on, each part under a readable name. A file with another fingerprint is refused.
    """

    def __init__(self, fingerprint: Mapping[str, str]) -> None:
        self.fingerprint = dict(fingerprint)
        self._logps: dict[str, Tensor] = {}

    @classmethod
    def load(cls, path: Path, fingerprint: Mapping[str, str]) -> PrecomputedReference:
        """Read a table from its file.

        Raises:
            ConfigError: the file has another fingerprint; the message names what changed.
        """
        table = cls(fingerprint)
        with safe_open(path, "pt") as file:
            made: dict[str, str] = file.metadata() or {}
            digests = made.pop("digests", "").split()
            changed = sorted(name for name in {*made, *fingerprint} if made.get(name) != fingerprint.get(name))
            if changed:
                raise ConfigError(
                    f"{path} holds reference log-probabilities made with another {' and another '.join(changed)}: delete it to compute "
                    "them again, or set precomputed_ref_path to another file."
                )
            table._logps = dict(zip(digests, file.get_tensor("logps"), strict=True))
        return table

    def save(self, path: Path) -> None:
        """Write the table, replacing the file atomically."""
        logps = torch.stack(list(self._logps.values())) if self._logps else torch.empty(0, 2)
        write_whole(path, save({"logps": logps}, self.fingerprint | {"digests": " ".join(self._logps)}))

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are not in the table, one for each digest."""
        found = {sample_digest(row): row for row in rows}
        return [row for digest, row in found.items() if digest not in self._logps]

    def add(self, rows: Sequence[Row], logps: PerSequence) -> None:
        """Add pairs.

        Args:
            logps: [2 · rows] as `completion_logps` returns them.
        """
        for row, pair in zip(rows, logps.float().cpu().view(-1, 2), strict=True):
            self._logps[sample_digest(row)] = pair

    def update(self, entries: Mapping[str, Tensor]) -> None:
        """Add the entries of another rank."""
        self._logps.update(entries)

    @property
    def entries(self) -> dict[str, Tensor]:
        """Digest → [2] log-probabilities of chosen and rejected."""
        return self._logps

    def __call__(self, rows: Sequence[Row]) -> PerSequence:
        """[2 · rows] log-probabilities, chosen and rejected in turn."""
        return torch.cat([self._logps[sample_digest(row)] for row in rows])


def rows_of(datasets: Iterable[Any]) -> list[Row]:
    """The rows of several data sets; None is skipped.

    Raises:
        ConfigError: one of them is a stream.
    """
    found = [records for records in datasets if records is not None]
    if any(is_stream(records) for records in found):
        raise ConfigError("precompute_ref_log_probs=True needs data sets with a length, not streams.")
    tables = [RowDataset(records) for records in found]
    return [table[index] for table in tables for index in range(len(table))]


def precomputed_reference(
    path: Path,
    fingerprint: Mapping[str, str],
    rows: Sequence[Row],
    logps: Callable[[], Callable[[Sequence[Row]], PerSequence]],
    *,
    batch_size: int,
    shows_progress: bool,
) -> PrecomputedReference:
    """The table of some rows: read from its file, completed if rows are missing, and written back. All ranks call it together.

    Args:
        path: the table's file.
        fingerprint: see `PrecomputedReference`.
        rows: the rows that the table must hold.
        logps: returns the function that computes rows. It is called only if rows are missing, so that the reference model is loaded only
            if needed.
        batch_size: rows of one pass.
        shows_progress: show a progress bar.
    """
    table = PrecomputedReference.load(path, fingerprint) if path.exists() else PrecomputedReference(fingerprint)
    missing = table.missing(rows)
    if not missing:
        return table
    state, own, compute = PartialState(), PrecomputedReference(fingerprint), logps()
    mine = missing[state.process_index :: state.num_processes]
    with logging.tqdm(total=len(mine), desc="reference", disable=not shows_progress) as bar:
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            own.add(part, compute(part))
            bar.update(len(part))
    for entries in gather_object([own.entries]):
        table.update(entries)
    if state.is_main_process:
        table.save(path)
    return table
