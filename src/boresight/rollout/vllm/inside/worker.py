"""The methods that a trainer can call in vLLM's workers, and the logits processor that bans ids. `messages` has their names."""

from __future__ import annotations

import secrets
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from boresight.rollout.vllm.inside.delivery import Delivery, NCCLDelivery
from boresight.rollout.vllm.inside.fingerprints import factor_fingerprints, parameter_fingerprints
from boresight.rollout.vllm.protocol.codec import from_json, to_dict
from boresight.rollout.vllm.protocol.messages import (
    BANNED,
    AbandonedUpdate,
    AdapterFingerprints,
    EngineFacts,
    Fingerprints,
    GetAdapterFingerprints,
    GetFingerprints,
    LastUpdate,
    ParameterSources,
)

INSTANCE_ID = secrets.token_hex(8)


class Extension:
    """Methods that vLLM adds to its workers, one per call in `messages`. They take a JSON string and return the answer as JSON types."""

    model_runner: Any
    weight_transfer_engine: Any
    _weight_update_active: bool

    def boresight_facts(self, argument: str) -> dict[str, Any]:
        config = self.model_runner.vllm_config
        facts = EngineFacts(
            instance_id=INSTANCE_ID,
            transport={Delivery: "file", NCCLDelivery: "nccl"}.get(type(self.weight_transfer_engine)),
            world_size=config.parallel_config.world_size,
            num_stages=config.parallel_config.pipeline_parallel_size,
            num_coupled=config.parallel_config.data_parallel_size,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            logprobs_mode=config.model_config.logprobs_mode,
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=config.scheduler_config.max_num_seqs,
            max_lora_rank=config.lora_config.max_lora_rank if config.lora_config else None,
            bans_ids=any("BanIds" in str(each) for each in config.model_config.logits_processors or ()),
        )
        return to_dict(facts)

    def boresight_last_update(self, argument: str) -> dict[str, Any]:
        return to_dict(LastUpdate(self.weight_transfer_engine.report))

    def boresight_parameter_sources(self, argument: str) -> dict[str, Any]:
        return to_dict(ParameterSources(self.weight_transfer_engine.sources))

    def boresight_abandon_update(self, argument: str) -> dict[str, Any]:
        was_active = bool(self._weight_update_active)
        if was_active:
            self.weight_transfer_engine.abandon()
            self._weight_update_active = False
        return to_dict(AbandonedUpdate(was_active, INSTANCE_ID))

    @torch.no_grad()
    def boresight_fingerprints(self, argument: str) -> dict[str, Any]:
        wanted = set(from_json(GetFingerprints, argument).parameters)
        return to_dict(Fingerprints(parameter_fingerprints(self.model_runner.get_model(), wanted)))

    @torch.no_grad()
    def boresight_adapter_fingerprints(self, argument: str) -> dict[str, Any]:
        wanted = from_json(GetAdapterFingerprints, argument).modules
        manager = self.model_runner.lora_manager._adapter_manager
        newest = max(manager.list_adapters(), default=None)
        if newest is None or newest not in manager.lora_index_to_id:
            return to_dict(AdapterFingerprints(None))
        slot, adapter = manager.lora_index_to_id.index(newest), manager.get_adapter(newest)
        found = {name: factor_fingerprints(manager, adapter, slot, name, sizes) for name, sizes in wanted.items()}
        return to_dict(AdapterFingerprints(found))


class BanIds(LogitsProcessor):
    """Gives zero probability to the ids in a request's `extra_args["boresight_banned"]`. (`logit_bias` is clipped, so it cannot ban.)"""

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
