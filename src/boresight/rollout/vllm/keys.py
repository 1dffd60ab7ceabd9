"""The key that guards a server's calls. A server on this machine has one of its own, in a file that only its user can read, since every
user of the machine reaches its port."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from boresight.rollout.vllm.protocol.messages import KEY

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches. vLLM itself listens on every address unless it is given one."""


def folder() -> Path:
    """Where keys are kept."""
    from huggingface_hub.constants import HF_HOME  # here, because it is slow and `boresight --help` imports `serve`

    return Path(HF_HOME) / "boresight" / "server-keys"


def new_key(port: int) -> str:
    """The key of a server that starts now: that of the environment; without one, a new one, kept for trainers of this user."""
    if key := os.environ.get(KEY):
        return key
    key, file = secrets.token_urlsafe(32), folder() / str(port)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
        written.write(key)
    return key


def drop_key(port: int) -> None:
    """Forget the key of a server that has ended."""
    (folder() / str(port)).unlink(missing_ok=True)


def find_key(url: str) -> str | None:
    """The key to send to an address: that of the environment; without one, that of a server of this user on this machine."""
    if key := os.environ.get(KEY):
        return key
    address = urlsplit(url)
    if address.hostname not in LOOPBACK:
        return None
    try:
        return (folder() / str(address.port or 80)).read_text()
    except OSError:  # none was started here, or by another user
        return None
