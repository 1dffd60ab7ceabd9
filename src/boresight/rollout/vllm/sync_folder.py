"""Folders that pass weights from trainers to a server, as files."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from boresight.rollout.vllm.protocol.tensors import Tensors

FILE_BYTES = 2**31
"""Most bytes of weights in one file."""


def own_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A new folder that belongs to this process alone."""
    return tempfile.TemporaryDirectory(prefix=f"{_prefix()}{os.getpid()}-", dir=parent, ignore_cleanup_errors=True)


def remove_left_behind(parent: Path) -> None:
    """Remove the folders of trainers on this machine that no longer run."""
    for folder in parent.glob(f"{_prefix()}*"):
        pid = int(folder.name.removeprefix(_prefix()).partition("-")[0])
        if not _is_running(pid):
            shutil.rmtree(folder, ignore_errors=True)


def saved_files(tensors: Tensors, folder: Path) -> Iterator[Path]:
    """Write safetensors files of up to `FILE_BYTES`, one at a time. Each is removed before the next one is written."""
    for number, part in enumerate(_parts(tensors)):
        path = folder / f"{number}.safetensors"
        save_file(part, path)
        yield path
        path.unlink()


def _parts(tensors: Tensors) -> Iterator[dict[str, Tensor]]:
    """Copies of the tensors on the CPU, in parts of up to `FILE_BYTES`. No two tensors share memory."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors():
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format).copy_(tensor)
        size += tensor.nbytes
    if part:
        yield part


def _prefix() -> str:
    """The prefix of the folder names of this machine's trainers; a process id follows."""
    return f"boresight-sync-{socket.gethostname()}-"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
