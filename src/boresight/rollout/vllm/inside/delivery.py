"""How weights arrive inside vLLM. The engine starts without weights, and updates bring them, with a record of where each tensor went.

`plugin` registers this file with vLLM.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from boresight.rollout.vllm.protocol.messages import LOAD_FORMAT, UpdateReport
from boresight.rollout.vllm.protocol.tensors import SHARED_TENSORS, TensorLocation

QKV = {"q": 0, "k": 1, "v": 2}
"""The order of the parts of a fused attention projection. Other fused layers number their parts."""
EXPERT = {"w1": 0, "w3": 1, "w2": 0}
"""The order of an expert's parts: gate before up in one parameter, down in another."""

FLAT_TOWER = re.compile(r"(model\.)?vision_tower\.(?!vision_model\.)")
"""The beginning of a vision tower's tensor that is saved without the tower's inner module."""


@register_model_loader(LOAD_FORMAT)
class AwaitingLoader(DummyModelLoader):
    """Random parameters, which the trainer's first sync replaces.

    vLLM's own dummy loader also overwrites buffers that no checkpoint holds, such as the scale and shift of a vision tower's input. No
    later sync would restore them.
    """

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        super().load_weights(model, model_config)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """Memory and files need no set-up."""


@dataclass
class Update(TensorLocation, WeightTransferUpdateInfo):
    """Tensors in this process's memory, or in a safetensors file."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors with their names in a checkpoint."""
        if self.shared is not None:
            yield from SHARED_TENSORS[self.shared]()
        elif self.path is not None:
            with safe_open(self.path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    yield name, file.get_tensor(name)


class Recorded:
    """A weight transfer engine that records where each tensor went. It is a mixin; the other base class is the transport.

    A module receives all of its tensors or none. If a fused projection received q and k but no v, v would be arbitrary memory. Such a
    module keeps its old weights, and `report` names the missing tensors.
    """

    model: Any
    model_config: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sources: dict[str, list[str]] = {}
        """The engine's parameter → the checkpoint names of its parts, in the order of its rows."""
        self.report: UpdateReport | None = None
        """The report of the last update; None while one is in progress."""
        self._sent: list[str] = []
        self._arrived: dict[str, dict[str, int]] = {}

    def start_weight_update(self) -> None:
        self._sent, self._arrived, self.report = [], {}, None
        initialize_layerwise_reload(self.model)
        for module_name, module in self.model.named_modules():
            for name, tensor in _own_tensors(module):
                full = full_name(module_name, name)
                tensor.weight_loader = self._recorded(full, tensor.weight_loader)

    def receive_weights(self, update_info: Any) -> None:
        model = self.model
        self.model = _Noting(model, self._sent)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model

    def _recorded(self, parameter: str, loader: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the loader so that it also records that the last sent tensor goes to `parameter`."""

        @functools.wraps(loader)  # vLLM unwraps by name and __wrapped__
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._arrived.setdefault(parameter, {})[self._sent[-1]] = _place(*args[2:], **kwargs)
            return loader(*args, **kwargs)

        return noting

    def finish_weight_update(self) -> None:
        arrived = {name for names in self._arrived.values() for name in names}
        partly = self._restore_partly_covered()
        self._finalize()
        for parameter, names in self._arrived.items():
            self.sources.setdefault(parameter, sorted(names, key=lambda name: names[name]))
        self._refresh_tied()
        self.report = UpdateReport(
            received=sorted(arrived),
            not_received=[name for name in self._sent if name not in arrived and not self._is_left_out(name)],
            left_out=[name for name in self._sent if name not in arrived and self._is_left_out(name)],
            partly_covered=partly,
            untouched=[name for name, _ in self.model.named_parameters() if name not in self._arrived],
        )

    def _is_left_out(self, name: str) -> bool:
        """Whether a tensor belongs to a vision tower's last layers. vLLM does not build them if an earlier layer's features are used."""
        name = tower_name(self.model, name)
        modules = dict(self.model.named_modules())
        if re.fullmatch(r"vision_tower\..*post_layernorm\.(weight|bias)", name):
            return name.rpartition(".")[0] not in modules
        found = re.fullmatch(r"(vision_tower\..*layers)\.(\d+)\..*", name)
        layers = modules.get(found[1]) if found else None
        return isinstance(layers, nn.ModuleList) and found is not None and int(found[2]) >= len(layers)

    def _refresh_tied(self) -> None:
        """Process modules again whose weight is tied to another module that has received it.

        A tied head receives no weights of its own. If it keeps them packed (as vLLM does on a CPU), it would keep using the old ones.
        """
        owner = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for module_name, module in self.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full, source = full_name(module_name, name), owner[id(parameter)]
                if full == source or source not in self.sources:
                    continue
                self.sources[full] = self.sources[source]
                if source in self._arrived:
                    module.quant_method.process_weights_after_loading(module)

    def _restore_partly_covered(self) -> dict[str, list[str]]:
        """Restore the old weights of modules that received only some of their tensors, and return each one's missing tensors."""
        partly = {}
        for module_name, module in self.model.named_modules():
            info = get_layerwise_info(module)
            if not info.can_load() or not info.load_numel:
                continue
            missing = self._missing(module_name, module, info)
            if missing:
                partly[module_name] = missing
                info.loaded_weights.clear()
                info.load_numel = 0
        return partly

    def _missing(self, module_name: str, module: nn.Module, info: Any) -> list[str]:
        sent, missing, never = set(self._sent), [], 0
        for name, tensor in _own_tensors(module):
            if name in info.kernel_non_persistent_buffers:  # no checkpoint holds it, and vLLM keeps its value
                never += tensor.numel()
                continue
            full = full_name(module_name, name)
            known = self.sources.get(full)
            if known is not None:
                missing += [source for source in known if source not in sent]
            elif full not in self._arrived:
                missing.append(full)
        if not missing and not isinstance(module, VocabParallelEmbedding):  # its padding is never sent
            short = info.load_numel_total - info.load_numel - never
            if short:
                missing.append(f"{short} numbers besides {', '.join(self._names(module_name))}")
        return missing

    def _names(self, module_name: str) -> list[str]:
        return [
            name
            for parameter, names in self._arrived.items()
            if parameter.rpartition(".")[0] == module_name
            for name in names
        ]

    def abandon(self) -> None:
        """Undo an update that was started but not finished."""
        for module in self.model.modules():
            info = get_layerwise_info(module)
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
        self._finalize()

    def _finalize(self) -> None:
        # Modules that received nothing keep their weights by design; vLLM would log a warning for each.
        log = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
        before = log.level
        log.setLevel(logging.ERROR)
        try:
            finalize_layerwise_reload(self.model, self.model_config)
        finally:
            log.setLevel(before)


class _Noting:
    """A model whose `load_weights` records the name of each tensor."""

    def __init__(self, model: Any, sent: list[str]) -> None:
        self._model = model
        self._sent = sent
        modules = model.modules()
        self._transposes_experts = any(getattr(module, "is_fused_checkpoint_transposed", False) for module in modules)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self._noted(weights))

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._sent.append(name)
            yield tower_name(self._model, name), self._turned(name, tensor)

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        """A fused tensor of experts as checkpoints on the hub have it. For some families (Qwen3-VL-MoE) that is transposed, and
        transformers 5 saves it as its own modules hold it."""
        is_fused = tensor.ndim == 3 and ".experts." in name
        return tensor.transpose(1, 2) if is_fused and self._transposes_experts else tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def tower_name(model: Any, name: str) -> str:
    """The name that vLLM expects. transformers 5 saves the vision towers of LLaVA and LFM2-VL one level flatter than checkpoints on the
    hub."""
    tower = getattr(model, "vision_tower", None)
    if FLAT_TOWER.match(name) and isinstance(getattr(tower, "vision_model", None), nn.Module):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


class _MemoryOrFile(WeightTransferEngine[NoInitInfo, Update]):
    """Transport by memory or by file."""

    init_info_cls = NoInitInfo
    update_info_cls = Update

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        """Nothing to set up."""

    def receive_weights(self, update_info: Update) -> None:
        self.model.load_weights(update_info.tensors())

    def shutdown(self) -> None:
        """Nothing to release."""


class Delivery(Recorded, _MemoryOrFile):
    """Tensors from the same process, or from a file on the same machine."""


class NCCLDelivery(Recorded, NCCLWeightTransferEngine):
    """Tensors by vLLM's own NCCL broadcast. It needs GPUs, and is not covered by tests."""


def _place(*args: Any, **kwargs: Any) -> int:
    """The place of a tensor among those of its parameter, from what vLLM passes to a loader after parameter and tensor."""
    if "expert_id" in kwargs:
        return 2 * kwargs["expert_id"] + EXPERT[kwargs["shard_id"]]
    shard: Any = next((each for each in (*args, *kwargs.values()) if isinstance(each, (int, str))), 0)
    return QKV[shard] if shard in QKV else int(shard)


def full_name(module: str, name: str) -> str:
    """A parameter's full name; `module` is empty for the model's own parameters."""
    return f"{module}.{name}" if module else name


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own tensors that have a loader."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(name, tensor) for name, tensor in own if hasattr(tensor, "weight_loader")]
