"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file aside, then rename it into place: a reader, or a run that was killed, finds the whole file or the one before it.

    Args:
        path: its folder is made where there is none.
        content: text is encoded as UTF-8; half of a surrogate pair, which has no encoding, becomes a question mark.

    Returns:
        The path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode(errors="replace"))
        file.flush()
        # Without it a machine that loses power may keep the new name and lose the content.
        os.fsync(file.fileno())
    aside.replace(target)
    return target
