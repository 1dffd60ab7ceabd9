"""The policy's LoRA adapter in the form that an engine loads. It is all that the trainer sends when nothing else is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from boresight.errors import ConfigError
from boresight.model.export import PolicyWeights
from boresight.model.shards import whole
from boresight.modules import is_quantised, unwrap

WAY_OUT = "set vllm_lora_sync='merged'"


def adapted_layers(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """Module name → the layer and the name of its active adapter, for a policy of which only plain LoRA is trained.

    Raises:
        ConfigError: the policy has no adapter, the adapter is not plain LoRA on linear modules, or other weights are trained too.
    """
    base = unwrap(model)
    modules: Any = base.named_modules()
    found: dict[str, tuple[Any, str]] = {
        name: (module, _active(name, module)) for name, module in modules if isinstance(module, BaseTunerLayer)
    }
    if not found:
        raise ConfigError(
            f"vllm_lora_sync='adapter' sends an adapter, but the policy has none: train one (use_peft), or {WAY_OUT}."
        )
    own = {id(part.weight) for layer, name in found.values() for part in (layer.lora_A[name], layer.lora_B[name])}
    if further := [name for name, value in base.named_parameters() if value.requires_grad and id(value) not in own]:
        raise ConfigError(
            f"vllm_lora_sync='adapter' sends only the adapter, but {further[0]} is trained as well "
            f"({len(further)} tensors besides the adapter): {WAY_OUT}."
        )
    return found


class PolicyAdapter:
    """The LoRA factors of every module that a policy's active adapter changes, under the names of the policy's saved folder.

    Args:
        model: the policy, wrapped by DDP and PEFT.

    Raises:
        ConfigError: as `adapted_layers`; or a module is saved as several tensors, or under another name than a weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: dict[str, tuple[Any, str]] = {}
        """Saved name of a module → its layer and the name of its active adapter."""
        self.images = False
        weights = PolicyWeights(model, adapters=False)
        for name, (layer, adapter) in adapted_layers(model).items():
            saved = weights.saved_names(f"{name}.weight")
            if len(saved) != 1 or not saved[0].endswith(".weight"):
                raise ConfigError(
                    f"{name} is saved as other tensors ({', '.join(saved)}), so its adapter has no name: {WAY_OUT}."
                )
            self._layers[saved[0].removesuffix(".weight")] = layer, adapter
            self.images |= weights.listed[saved[0]].images

    @property
    def rank(self) -> int:
        return max(layer.r[adapter] for layer, adapter in self._layers.values())

    @contextmanager
    def copied(self, keep: bool) -> Iterator[None]:
        """A context in which `factors` returns copies, where layers are divided over ranks. All ranks call this together.

        Args:
            keep: whether this rank calls `factors`; others only take part.
        """
        copies = [(name, whole(down), whole(up)) for name, down, up in self.factors()]
        self._copies = copies if keep else None
        try:
            yield
        finally:
            self._copies = None

    _copies: list[tuple[str, Tensor, Tensor]] | None = None

    @torch.no_grad()
    def factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        if self._copies is not None:
            yield from self._copies
            return
        for name, (layer, adapter) in self._layers.items():
            down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            yield name, down.detach(), up.detach() * layer.scaling[adapter]


def _active(name: str, layer: Any) -> str:
    """The name of a layer's active adapter, after a check that it is plain LoRA."""
    active = [each for each in layer.active_adapters if each in getattr(layer, "lora_A", {})]
    is_linear = isinstance(layer, Linear) or is_quantised(getattr(layer.get_base_layer(), "weight", None))
    if not is_linear or len(active) != 1:
        kind = type(layer).__name__
        raise ConfigError(
            f"{name} ({kind}, active: {', '.join(active) or 'none'}) is not a linear module with one LoRA adapter, and vLLM serves "
            f"nothing else: {WAY_OUT}."
        )
    if layer.lora_variant.get(active[0]) is not None or layer.lora_bias.get(active[0]):
        variant = type(layer.lora_variant.get(active[0])).__name__.removesuffix("LinearVariant")
        raise ConfigError(
            f"{name}: vLLM serves only plain LoRA, but this adapter uses {variant if variant != 'NoneType' else 'a bias'}: {WAY_OUT}."
        )
    return active[0]
