"""Files that are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


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
