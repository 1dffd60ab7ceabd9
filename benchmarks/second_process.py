"""An engine in a process of its own: a copy of the policy that transformers samples from. It needs no vLLM and starts in seconds.

The copy lies in shared memory, and a sync writes the policy's weights into it.
"""

from __future__ import annotations

import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from transformers import AutoConfig, AutoModelForImageTextToText

from boresight.errors import EngineError
from boresight.modules import unwrap
from boresight.rollout.hf import HFSampler
from boresight.rollout.synced import SyncReport
from boresight.sampling import EngineInputs, SamplingSettings
from boresight.types import Group, Prompt


def serve(
    connection: Connection[Any, Any], folder: str, weights: dict[str, torch.Tensor], facts: Any, tokenizer: Any
) -> None:
    """Answer `(prompts, settings)` with completions and the seconds that they took, until the other end is closed.

    Args:
        weights: the state of the model, in shared memory.
    """
    torch.set_num_threads(1)
    policy = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    policy.load_state_dict(weights, assign=True)
    sampler = HFSampler(lambda: policy, facts, tokenizer)
    while True:
        try:
            content = connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        groups = sampler.sample(*content)
        connection.send((groups, time.perf_counter() - start))


class SecondProcess:
    """`SyncedEngine` over a process that is started here, with one thread.

    Args:
        inputs: what the trainer builds an engine from.
    """

    where = "the second process"
    dtype = "float32"
    pushes = True

    def __init__(self, inputs: EngineInputs, options: Any) -> None:
        weights: Any = inputs.weights(True)
        self._policy = lambda: unwrap(weights.model)
        self.counts: Counter[str] = Counter()
        self.version = ""
        self.seconds: list[float] = []
        """Of each batch, in the second process."""
        self.is_fresh = False
        context = multiprocessing.get_context("spawn")
        self._shared = {
            name: tensor.cpu().clone().share_memory_() for name, tensor in self._policy().state_dict().items()
        }
        self._connection, other = context.Pipe()
        self._folder = tempfile.TemporaryDirectory()
        inputs.save(Path(self._folder.name))
        arguments = (other, self._folder.name, self._shared, inputs.facts, inputs.tokenizer)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Sequence[Prompt]:
        return prompts

    def completed(
        self, prompts: Sequence[Prompt], requests: Sequence[Prompt], settings: SamplingSettings
    ) -> list[Group]:
        groups, seconds = self._call(list(requests), settings)
        self.seconds.append(seconds)
        return groups

    def sampled_by(self, place: int) -> str:
        return self.where

    def sync(self, step: int, *, in_flight: bool = False) -> SyncReport | None:
        assert not in_flight
        if self.is_fresh:
            return None
        start = time.perf_counter()
        for name, tensor in self._policy().state_dict().items():
            self._shared[name].copy_(tensor)
        self.adopt(str(step))
        return SyncReport(len(self._shared), 0, time.perf_counter() - start)

    def _call(self, *content: Any) -> Any:
        try:
            self._connection.send_bytes(pickle.dumps(content))
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineError(f"{self.where} has ended.") from error

    def adopt(self, version: str) -> None:
        self.version, self.is_fresh = version, True

    def outdate(self) -> None:
        self.is_fresh = False

    def rest(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        self._connection.close()
        self._process.join(10)
        self._folder.cleanup()
