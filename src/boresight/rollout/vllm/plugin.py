"""vLLM's plugin entry point."""

from __future__ import annotations

import importlib
from typing import Any

from boresight.rollout.vllm.names import ENGINE, NCCL_ENGINE


def register() -> None:
    """Make `--weight-transfer-config '{"backend": "boresight"}'` and `--load-format boresight` known to vLLM."""
    factory: Any = importlib.import_module("vllm.distributed.weight_transfer").WeightTransferEngineFactory
    for name, engine in {ENGINE: "Delivery", NCCL_ENGINE: "NCCLDelivery"}.items():
        if name not in factory._registry:
            factory.register_engine(name, "boresight.rollout.vllm.worker", engine)
    importlib.import_module("boresight.rollout.vllm.loader")
