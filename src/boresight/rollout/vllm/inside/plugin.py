"""vLLM's plugin entry point."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from typing import Any

from boresight.rollout.vllm.protocol.messages import ENGINE, NCCL_ENGINE, STARTED_BY

DELIVERY = "boresight.rollout.vllm.inside.delivery"

PR_SET_PDEATHSIG = 1
"""Linux: the prctl(2) option for the signal that a process receives when its parent dies."""


def register() -> None:
    """Register `--weight-transfer-config '{"backend": "boresight"}'` and `--load-format boresight` with vLLM."""
    factory: Any = importlib.import_module("vllm.distributed.weight_transfer").WeightTransferEngineFactory
    for name, engine in {ENGINE: "Delivery", NCCL_ENGINE: "NCCLDelivery"}.items():
        if name not in factory._registry:
            factory.register_engine(name, DELIVERY, engine)
    importlib.import_module(
        DELIVERY
    )  # registers the load format; here, because it needs parts of vLLM that do not exist yet when this file is imported
    if STARTED_BY in os.environ and sys.platform == "linux":
        _end_with_parent()


def _end_with_parent() -> None:
    """End a server with the process that started it, and its engine with the server, even if the parent is killed."""
    inner = multiprocessing.parent_process() is not None
    _end_by(signal.SIGKILL if inner else signal.SIGTERM)
    os.register_at_fork(after_in_child=lambda: _end_by(signal.SIGKILL))
    try:
        os.kill(int(os.environ[STARTED_BY]), 0)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGTERM)  # the parent died before prctl was called


def _end_by(number: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
