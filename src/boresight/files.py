"""Files that are written completely or not at all, readable as the user's umask says, and paths that lead nowhere."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from boresight.errors import nearest


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a temporary file, then rename it into place. Readers find the complete new file or the old one, even after a killed run.

    Args:
        path: where to write. A missing folder is created.
        content: text is encoded as UTF-8; a lone surrogate, which UTF-8 cannot encode, becomes a question mark.

    Returns:
        The path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))
        file.flush()
        # Without fsync, a power failure may keep the new name and lose the content.
        os.fsync(file.fileno())
    aside.replace(target)
    return target


def share_as_umask(folder: str | os.PathLike[str], pattern: str = "*.safetensors") -> None:
    """Give files the mode of an ordinary new file. safetensors writes its files for their owner alone."""
    probe = Path(folder) / f".mode.{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in Path(folder).glob(pattern):
        path.chmod(mode)


def missing_path(source: str, suffixes: Collection[str] = ()) -> str | None:
    """Where a path that does not exist was looked for, with the nearest name there; None if it exists, or may be a hub id.

    A path starts with ``.``, ``/`` or ``~``, has several slashes or a known suffix, or its first part is a folder here.

    Args:
        suffixes: those of files that may be meant.
    """
    path = Path(source).expanduser()
    if path.exists():
        return None
    is_path = path.suffix in suffixes or source.startswith((".", "/", "~")) or source.count("/") > 1
    if not is_path and not ("/" in source and Path(path.parts[0]).is_dir()):
        return None
    folder = path.parent.absolute()
    if not folder.is_dir():
        return f"(looked in {folder}, which does not exist)."
    return f"(looked in {folder}).{nearest(path.name, [entry.name for entry in folder.iterdir()])}"
