"""The manifest of a saved folder: every file with its size and digest, so that a missing or damaged one is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from boresight.errors import CheckpointError
from boresight.files import file_digest, files_below, write_whole

MANIFEST = "boresight_manifest.json"
"""The name of the file in every checkpoint and in the final model folder. It is written last."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds."""

    files: Mapping[str, tuple[int, str]]
    """Path → its bytes and SHA-256."""
    step: int
    """Optimizer steps done."""
    num_ranks: int
    resumable: bool = True
    """False for weights alone (`save_only_model`, or the final model)."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """The identity of the run (`identity.Identity`)."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


def write_manifest(
    folder: Path, *, step: int, num_ranks: int, resumable: bool = True, run: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest of all files of a folder. Their digests are of the bytes that are read back."""
    files = {
        name: ((folder / name).stat().st_size, file_digest(folder / name))
        for name in files_below(folder)
        if name != MANIFEST
    }
    manifest = Manifest(files, step, num_ranks, resumable, run or {})
    content = asdict(manifest)
    write_whole(folder / MANIFEST, json.dumps(content | {"digest": _digest(content)}, indent=1))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        digest = content.pop("digest")
        if digest == _digest(content):
            files = {name: (size, sha256) for name, (size, sha256) in content.pop("files").items()}
            return Manifest(files, **content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {MANIFEST}: boresight did not write it, or not to its end.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged.") from error
    raise CheckpointError(f"{folder / MANIFEST} is damaged.")


def faults(folder: Path, *, digests: bool = True) -> list[str]:
    """What is wrong with a saved folder, one text for each file concerned; empty if it is whole.

    Args:
        digests: also read every file and compare its digest.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error).removeprefix(f"{folder} ").removeprefix(f"{folder}/").rstrip(".")]
    found = (_fault(folder / name, name, *expected, digests) for name, expected in manifest.files.items())
    return [fault for fault in found if fault is not None]


def check_whole(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all as they were written.

    Raises:
        CheckpointError: some are not; the message names them.
    """
    if found := faults(folder):
        raise CheckpointError(f"{folder} is not whole: {named(found)}.")
    return read_manifest(folder)


def named(texts: Sequence[str], most: int = 4) -> str:
    """The first few of some texts in one line, and how many more there are."""
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def _fault(path: Path, name: str, size: int, sha256: str, digests: bool) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} of {size} bytes"
        if digests and file_digest(path) != sha256:
            return f"{name} is damaged (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
