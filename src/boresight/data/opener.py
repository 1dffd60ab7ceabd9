"""The one place where an image's file is opened: addresses become paths, and only regular files are read.

A path in a table may come from anywhere. It may be an address, name a device that never ends, or a queue that waits for ever; here it
becomes the bytes of a file on this machine, or an error.
"""

from __future__ import annotations

import binascii
import os
import re
import stat
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from boresight.errors import ImageError

MAX_FILE_BYTES = 2**30
"""Largest file that is read as an image. Decoded, it would be far larger."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//|(?<=file:)/)", re.IGNORECASE)
_DATA = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_SHOWN = 80
_MIN_BASE64 = 64


def shown(value: object) -> str:
    """A path or address as an error shows it, cut where it is long."""
    text = os.fsdecode(value) if isinstance(value, Path) else str(value)
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}… ({len(text):,} characters)"


def written_bytes(text: str, where: str) -> bytes | None:
    """The bytes of an image that is written out as text: a ``data:`` address, or base64. None if the text is neither.

    Raises:
        ImageError: it begins as a ``data:`` address, or is as long and as dense as base64, and cannot be read as one.
    """
    if head := _DATA.match(text):
        body = text[head.end() :]
        if head[1].lower().rstrip().endswith(";base64"):
            return _from_base64(unquote(body), where)
        return unquote_to_bytes(body)
    if len(text) < _MIN_BASE64 or not _BASE64.fullmatch(text):
        return None
    is_path = len(text) < 4096 and (Path(text).suffix != "" or os.path.lexists(text))
    return None if is_path else _from_base64(text, where)


def _from_base64(text: str, where: str) -> bytes:
    dense = "".join(text.split()).rstrip("=")
    try:
        return b64decode(
            dense + "=" * (-len(dense) % 4), altchars=b"-_" if set(dense) & {"-", "_"} else None, validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise ImageError(
            f"{where}: the image is written as text, {shown(text)}, and it is not base64 ({error}). Store its bytes or its path instead."
        ) from error


def local_path(value: str | Path, where: str) -> Path:
    """The path of a file on this machine; a ``file:`` address is decoded.

    Raises:
        ImageError: it is empty, an address of another machine, or cannot be a path.
    """
    text = os.fspath(value)
    if not text.strip():
        raise ImageError(f"{where}: the image's path is empty.")
    if "\0" in text:
        raise ImageError(f"{where}: the image's path {shown(text)} contains a NUL character.")
    if isinstance(value, str) and (address := _ADDRESS.match(text)):
        parts = urlsplit(text)
        if address[1].lower() != "file" or parts.hostname not in (None, "localhost"):
            raise ImageError(
                f"{where}: {shown(text)} is not on this machine. Download the image first and give its path."
            )
        text = unquote(parts.path)
        if "\0" in text:
            raise ImageError(f"{where}: the image's address {shown(value)} contains a NUL character.")
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except (UnicodeEncodeError, RuntimeError, KeyError) as error:  # half a character; a user that does not exist
        raise ImageError(f"{where}: the image's path {shown(text)} cannot be one: {error}.") from error


def read_file(path: Path, where: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        ImageError: the file is missing, unreadable, no regular file, or larger than `MAX_FILE_BYTES`.
    """
    descriptor = -1
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )  # a queue without a writer must not block
        kind = os.fstat(descriptor)
        if not stat.S_ISREG(kind.st_mode):
            raise ImageError(f"{where}: {shown(path)} is {_kind(kind.st_mode)}, not a file. Give the path of an image.")
        if kind.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{where}: {shown(path)} has {kind.st_size / 2**30:.1f} GiB, and an image may have 1 GiB at most. Shrink it."
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)  # what the system makes up as it is read has no size
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{where}: cannot read the image {shown(path)}: {reason} (looked in {Path.cwd()}).") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if data is None or len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{where}: {shown(path)} does not end, or gives nothing to read. Give the path of an image.")
    return data


def _kind(mode: int) -> str:
    kinds = {
        "a folder": stat.S_ISDIR,
        "a queue (FIFO)": stat.S_ISFIFO,
        "a socket": stat.S_ISSOCK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }
    return next((name for name, is_kind in kinds.items() if is_kind(mode)), "something else")
