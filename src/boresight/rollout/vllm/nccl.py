"""Weights to a server by vLLM's own NCCL transfer. It needs GPUs, and is not covered by tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from boresight.rollout.vllm.protocol.tensors import Tensors


class Source(WeightSource):
    """The tensors of an update."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.cuda()) for name, tensor in self.tensors())  # copies of divided weights are on the CPU


class Broadcast:
    """The trainer's end of the NCCL group of trainer and workers.

    Args:
        url: the server's address.
        num_workers: how many workers the server has.
        port: the group's port on the trainer's machine (VLLM_HOST_IP gives its address if workers run on another machine).
        timeout_s: the time limit for one call.
    """

    def __init__(self, url: str, num_workers: int, port: int, timeout_s: float) -> None:
        host = os.environ.get("VLLM_HOST_IP", "127.0.0.1")
        info = NCCLTrainerInitInfo(rank=0, master_address=host, master_port=port, world_size=1 + num_workers)
        client = HTTPVLLMWeightSyncClient(url, timeout=timeout_s)
        # The source is replaced at every sync.
        self._transfer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=Source(lambda: ()))

    def send(self, tensors: Tensors) -> None:
        """Start an update, broadcast, and finish it."""
        self._transfer.source = Source(tensors)
        self._transfer.send_weights()
