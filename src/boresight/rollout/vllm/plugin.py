"""vLLM's plugin entry point."""

from __future__ import annotations

from boresight.rollout.vllm.names import ENGINE, NCCL_ENGINE


def register() -> None:
    """Make `--weight-transfer-config '{"backend": "boresight"}'` known to vLLM; the engine's module is loaded when it is used."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    for name, engine in {ENGINE: "Delivery", NCCL_ENGINE: "NCCLDelivery"}.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, "boresight.rollout.vllm.worker", engine)
