"""Files and folders that are written completely or not at all, the state of the disk under them, and paths that lead nowhere."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

from boresight.errors import DiskError, nearest


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
    try:
        with aside.open("wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))
            file.flush()
            # Without fsync, a power failure may keep the new name and lose the content.
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError:
        aside.unlink(missing_ok=True)  # a full disk must not fill with halves
        raise
    return target


def files_below(folder: Path) -> list[str]:
    """The paths of all regular files of a folder and its subfolders, relative to it, in alphabetical order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flush_folder(folder: Path) -> None:
    """Wait until every file of a folder, and the folder itself with its subfolders, is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it exists. It loses its name first, so that nobody finds half of it."""
    if folder.exists():
        doomed = folder.with_name(f".removing-{uuid.uuid4().hex}")
        folder.rename(doomed)
        shutil.rmtree(doomed)


# ---- The disk ------------------------------------------------------------------------------------------------------------------


def check_writable(folder: Path) -> None:
    """Create a folder if it is missing, and write a file into it and remove it.

    Raises:
        DiskError: that is not possible; the message names the folder and the cause.
    """
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"boresight")
        probe.unlink()
    except OSError as error:
        raise DiskError(
            f"output_dir={str(folder)!r} cannot be written to: {error.strerror or error}. Set output_dir to a folder that you may write to."
        ) from error


def free_bytes(folder: Path) -> int:
    """Free bytes for this user on the disk of a folder, or of the nearest parent that exists."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that a disk has room for what is about to be written.

    Args:
        folder: where it will be written.
        needed: bytes.
        what: what it is, for the message.

    Raises:
        DiskError: it has not; the message names both sizes.
    """
    free = free_bytes(folder)
    if free < needed:
        raise DiskError(
            f"{what} takes {in_units(needed)}, and the disk of {folder} has {in_units(free)} free: make room, set output_dir to another "
            "disk, or lower save_total_limit."
        )


def cause_of_failed_write(error: BaseException) -> str:
    """Why a write failed. Libraries wrap the operating system's error, or keep only its text."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno is not None:
            return os.strerror(found.errno)
        found = found.__cause__ or found.__context__
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    text = " ".join(str(error).split())
    if "inline_container" in text:  # torch's writer, which finds less written than it wrote
        return "the write ended early, as on a full disk"
    return next((os.strerror(number) for number in known if os.strerror(number) in text), text or type(error).__name__)


def in_units(size: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def share_as_umask(folder: str | os.PathLike[str], pattern: str = "*.safetensors") -> None:
    """Give files the mode of an ordinary new file. safetensors writes its files for their owner alone."""
    probe = Path(folder) / f".mode.{os.getpid()}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in Path(folder).glob(pattern):
        path.chmod(mode)


def model_name(source: str) -> str:
    """A model's short name: the last part of its folder or hub id; of RUN/model the run's."""
    path = Path(source)
    return path.parent.name if path.name == "model" and path.parent.name else path.name or source


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
