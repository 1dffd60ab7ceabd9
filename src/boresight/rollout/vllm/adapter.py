"""Syncs for policies that train only a LoRA adapter: the base is sent once, then only the adapter. Every sync is verified.

The engine applies the adapter itself (vLLM's LoRA), so a sync sends only the adapter's bytes and merges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from boresight.errors import ConfigError, SyncError
from boresight.rollout.synced import SyncReport
from boresight.rollout.vllm.engine import Engine, by_replica
from boresight.rollout.vllm.protocol.messages import FactorFingerprints, FactorSizes, GetAdapterFingerprints, GetFacts
from boresight.rollout.vllm.protocol.tensors import fixed_vector, projected
from boresight.rollout.vllm.sync import TOLERANCE, WeightSync, listed
from boresight.sampling import Adapter, Weights

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for `max_lora_rank`."""


def lora_options(adapter: Adapter) -> dict[str, Any]:
    """vLLM's engine arguments that an adapter needs.

    Raises:
        ConfigError: its rank is above vLLM's largest.
    """
    if adapter.rank > RANKS[-1]:
        raise ConfigError(
            f"lora_r={adapter.rank} is above {RANKS[-1]}, the largest rank that vLLM serves: set vllm_lora_sync='merged'."
        )
    options = {"enable_lora": True, "max_lora_rank": min(rank for rank in RANKS if rank >= adapter.rank)}
    return options | ({"enable_tower_connector_lora": True} if adapter.images else {})


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the adapter in PEFT's format, with its scaling multiplied into B, so that all modules have the same rank and scaling."""
    tensors: dict[str, Tensor] = {}
    modules = []
    for name, down, up in adapter.factors():
        modules.append(name)
        for part, factor in (("lora_A", down), ("lora_B", up)):
            tensors[f"base_model.model.{name}.{part}.weight"] = factor.cpu().contiguous().clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=modules).save_pretrained(str(folder))


class AdapterSync:
    """Sends the policy's base to an engine once, and its adapter at every sync.

    A sync is verified if the engine lists the adapter, has bound every module of it, and holds the factors that were sent.

    Args:
        engine: the receiver.
        base: the policy's weights without the adapter.
        adapter: the policy's adapter.

    Raises:
        ConfigError: the engine accepts no adapters, or none of this rank.
    """

    def __init__(self, engine: Engine, base: Weights, adapter: Adapter) -> None:
        self.engine = engine
        self.weights = base
        self.adapter = adapter
        self._base = WeightSync(engine, base)
        self._has_base = False
        facts = engine.call(GetFacts())
        self._whole = facts.world_size == 1
        lora = lora_options(adapter)
        wanted = f"--enable-lora --max-lora-rank {lora['max_lora_rank']}"
        wanted += " --enable-tower-connector-lora" if adapter.images else ""
        if (facts.max_lora_rank or 0) < adapter.rank:
            holds = f"adapters up to rank {facts.max_lora_rank}" if facts.max_lora_rank else "no adapters"
            raise ConfigError(
                f"{engine.where} takes {holds}, and this one has rank {adapter.rank}: start it with boresight vllm-serve --model … "
                f"{wanted}, or set vllm_lora_sync='merged'."
            )

    def push(self, version: str, *, everything: bool = False, in_flight: bool = False) -> SyncReport:
        """Send the adapter, and the base if the engine lacks it, and verify both.

        Raises:
            SyncError: some weights did not arrive, or the engine bound them to no module.
        """
        assert not in_flight  # a request keeps the adapter that it began with
        start = time.perf_counter()
        num_sent = num_compared = 0
        if everything or not self._has_base:
            # The base gets another version, because weights without the adapter are not the policy's.
            report = self._base.push(f"{version}/base", everything=True)
            num_sent, num_compared = report.num_sent, report.num_compared
            self._has_base = True
        self.engine.load_adapter(lambda folder: save_adapter(self.adapter, folder), version)
        num_modules = self._compare({name: (down, up) for name, down, up in self.adapter.factors()})
        self.engine.reset_caches(images=self.adapter.images)
        return SyncReport(num_sent + 2 * num_modules, num_compared + num_modules, time.perf_counter() - start)

    def _compare(self, factors: Mapping[str, tuple[Tensor, Tensor]]) -> int:
        sizes = {name: FactorSizes(len(up), len(down), down.shape[1]) for name, (down, up) in factors.items()}
        for where, answer in by_replica(self.engine, GetAdapterFingerprints(sizes)):
            if answer.modules is None:
                raise SyncError(f"{where} does not list the adapter that was sent.")
            bound = {name: each for name, each in answer.modules.items() if each is not None}
            if unbound := [name for name in factors if name not in bound]:
                raise SyncError(
                    f"{where} bound the adapter's factors for {listed(unbound)} to nothing ({len(factors) - len(unbound)} of "
                    f"{len(factors)} modules are bound), and would sample without them: set vllm_lora_sync='merged'."
                )
            if self._whole:  # a worker that holds only a part of the model returns only a part of the fingerprint
                wrong = [name for name, pair in factors.items() if not self._equal(pair, bound[name])]
                if wrong:
                    raise SyncError(f"{where} does not hold the adapter that was sent: {listed(wrong)} differ.")
        return len(factors)

    def _equal(self, factors: tuple[Tensor, Tensor], found: FactorFingerprints) -> bool:
        down, up = factors
        return self._agrees(down, found.down) and self._agrees(up, found.up)

    def _agrees(self, factor: Tensor, found: float) -> bool:
        factor = factor.to(self._base.dtype)
        rows, columns = factor.shape
        output = (factor @ fixed_vector(columns, phase=0.5, like=factor)).float()
        scale = fixed_vector(rows, phase=1.5, like=output).norm() * output.norm()
        expected = projected(lambda vector: factor @ vector, rows, columns, factor)
        return abs(found - expected) <= TOLERANCE[str(self._base.dtype).removeprefix("torch.")] * float(scale)
