"""What runs inside vLLM's workers beside the delivery of weights: what can be asked of them, and which ids are never sampled.

vLLM loads this module by the names in `names`; the rest of boresight never imports it.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from boresight.rollout.vllm.answers import factors_answer, module_answers
from boresight.rollout.vllm.delivery import Delivery, NCCLDelivery
from boresight.rollout.vllm.names import BANNED

LIFE = secrets.token_hex(8)
"""Tells this process from one that was started in its place."""


class Extension:
    """Methods that vLLM gives its workers: `collective_rpc("boresight_…")`. Arguments and answers are JSON."""

    model_runner: Any
    weight_transfer_engine: Any

    def boresight_facts(self, argument: str = "{}") -> dict[str, Any]:
        """What a trainer must know before it relies on this engine."""
        config = self.model_runner.vllm_config
        return {
            "life": LIFE,
            "transport": {Delivery: "file", NCCLDelivery: "nccl"}.get(type(self.weight_transfer_engine)),
            "world_size": config.parallel_config.world_size,
            "stages": config.parallel_config.pipeline_parallel_size,
            "copies": config.parallel_config.data_parallel_size,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "logprobs_mode": config.model_config.logprobs_mode,
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_lora_rank": config.lora_config.max_lora_rank if config.lora_config else None,
            "bans": any("BanIds" in str(each) for each in config.model_config.logits_processors or ()),
        }

    def boresight_report(self, argument: str = "{}") -> dict[str, Any]:
        """Of the last update: what was sent, what of it went nowhere, and which modules were partly covered."""
        return self.weight_transfer_engine.report

    def boresight_sources(self, argument: str = "{}") -> dict[str, list[str]]:
        """Every parameter that was ever sent → the checkpoint names that make it up, in the order of its rows."""
        return self.weight_transfer_engine.sources

    def boresight_abandon(self, argument: str = "{}") -> dict[str, Any]:
        """Undo an update that a trainer began and never finished."""
        was_active = bool(self._weight_update_active)
        if was_active:
            self.weight_transfer_engine.abandon()
            self._weight_update_active = False
        return {"was_active": was_active, "life": LIFE}

    _weight_update_active: bool

    @torch.no_grad()
    def boresight_adapter(self, argument: str) -> dict[str, tuple[float, float] | None] | None:
        """What the factors of the adapter that came last do with fixed vectors.

        Args:
            argument: JSON: `modules`, saved name → (out, rank, in).

        Returns:
            Name → r₂ · A r₁ and r₂ · B r₁, see `vectors.projected`; null for a module that nothing was bound to. Null for all where no
            adapter is active.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        newest = max(manager.list_adapters(), default=None)
        if newest is None or newest not in manager.lora_index_to_id:
            return None
        slot, adapter = manager.lora_index_to_id.index(newest), manager.get_adapter(newest)
        wanted = json.loads(argument)["modules"]
        return {name: factors_answer(manager, adapter, slot, name, *sizes) for name, sizes in wanted.items()}

    @torch.no_grad()
    def boresight_probe(self, argument: str) -> dict[str, Any]:
        """What modules do with fixed vectors, so that even repacked weights can be compared with a trainer's.

        Args:
            argument: JSON: `parameters`, names of `boresight_sources`.

        Returns:
            Name → (rows, columns, value), where value = r₂ · (W r₁ + b), see `vectors.projected`; null where it cannot be asked.
        """
        return module_answers(self.model_runner.get_model(), set(json.loads(argument)["parameters"]))


class BanIds(LogitsProcessor):
    """Gives ids of a request's `extra_args["boresight_banned"]` no probability. (`logit_bias` is clipped and would be no ban.)"""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device = device
        self.banned: dict[int, tuple[int, ...]] = {}
        """Row of the batch → ids."""
        self._rows: list[tuple[Tensor, Tensor]] = []

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        def ids_of(params: Any, *_: Any) -> tuple[int, ...] | None:
            ids = (params.extra_args or {}).get(BANNED)
            return tuple(ids) if ids else None

        if process_dict_updates(self.banned, batch_update, ids_of):
            rows: dict[tuple[int, ...], list[int]] = {}
            for row, ids in self.banned.items():
                rows.setdefault(ids, []).append(row)
            self._rows = [
                (torch.tensor(places, device=self.device)[:, None], torch.tensor(ids, device=self.device))
                for ids, places in rows.items()
            ]

    def apply(self, logits: Tensor) -> Tensor:
        for rows, ids in self._rows:
            logits[rows, ids] = -torch.inf
        return logits
