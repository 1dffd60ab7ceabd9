"""The policy's weights under the names of its saved folder, which the trainer sends to an engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from boresight.errors import ConfigError
from boresight.model.quantised import tensors_of
from boresight.model.shards import exchanges_layers, gathered, gathered_in
from boresight.modules import is_quantised, quantisation, unwrap
from boresight.sampling import Weight

Tensors = dict[str, Callable[[], Tensor]]
"""Tensor name → a function that returns the tensor. Tensors are made on demand, because a merged adapter layer costs memory."""


def check_merges(model: nn.Module) -> None:
    """Check that an adapter can be merged into a policy's weights.

    Raises:
        ConfigError: they are quantised.
    """
    if bits := quantisation(model):
        raise ConfigError(
            f"vllm_lora_sync='merged' would merge the adapter into quantised weights ({bits}) at every sync. Set "
            "vllm_lora_sync='adapter': it sends the base once, as the numbers that it stands for, and then only the adapter."
        )


class PolicyWeights:
    """Names, parts and tensors of a policy as `save_pretrained` would write them, adapters merged or left out.

    The weights of a quantised base are listed as the numbers that they stand for, so that an engine computes with the same ones.

    Saved names differ from module names in many families, and saved tensors may be split or fused. Engines read the saved ones.
    Tied tensors are listed once.

    Args:
        model: the policy, with or without DDP and PEFT wrappers.
        adapters: whether adapters are merged into the tensors. Without them, no listed tensor is trained.

    Raises:
        ConfigError: adapters are to be merged into a quantised base.
    """

    def __init__(self, model: nn.Module, *, adapters: bool = True) -> None:
        self.model = model
        self.adapters = adapters
        base = unwrap(model)
        if adapters:
            check_merges(base)
        trained = _trained(base) if adapters else set()
        merged = _adapted_prefixes(base) if adapters else ()
        text = _text_prefixes(base)
        self.listed: dict[str, Weight] = {}
        self._saved_names: dict[str, list[str]] = {}
        """Plain name → the names that its tensor is saved under."""
        # A tensor's shape decides how many it is split into: fused experts are saved one by one.
        shapes = {name: make().to("meta") for name, make in _plain(base, adapters=False).items()}
        for name in _plain(base, adapters):
            weight = Weight(name in trained, images=not name.startswith(text), computed=name.startswith(merged))
            self._saved_names[name] = list(revert_weight_conversion(base, {name: shapes[name]}))
            for saved in self._saved_names[name]:
                before = self.listed.get(saved, weight)
                self.listed[saved] = Weight(
                    before.trained or weight.trained,
                    before.images or weight.images,
                    before.computed or weight.computed,
                )

    def saved_names(self, name: str) -> Sequence[str]:
        """The saved name of a tensor of the model without adapters, or the names of its parts if it is split."""
        return self._saved_names[name]

    @contextmanager
    def copied(self, keep: bool) -> Iterator[None]:
        """A context in which `tensors` returns copies in the CPU's memory, where layers are not gathered (`shards.gathered`). One layer
        after another is gathered and copied. All ranks call this together.

        Args:
            keep: whether this rank calls `tensors`; others only take part.
        """
        if not exchanges_layers(self.model):
            yield
            return
        base = unwrap(self.model)
        copies: dict[str, Tensor] = {}
        with gathered(self.model, layers=False):
            for place, names in groupby(self._saved_names, key=_layer):
                with gathered_in(self.model, place):
                    plain = _plain(base, self.adapters) if keep else {}
                    made = {name: plain[name]().detach() for name in names if keep}
                    copies |= {
                        name: tensor.to("cpu", copy=True)
                        for name, tensor in revert_weight_conversion(base, made).items()
                    }
        self._copies = copies
        try:
            yield
        finally:
            self._copies = None

    _copies: dict[str, Tensor] | None = None

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The current tensors with these names, layer by layer. A model with shards must be gathered (`shards.gathered`) or `copied`."""
        if self._copies is not None:
            yield from ((name, tensor) for name, tensor in self._copies.items() if name in names)
            return
        base, names = unwrap(self.model), set(names)
        for _, group in groupby(_plain(base, self.adapters).items(), key=lambda item: _layer(item[0])):
            wanted = {name: make().detach() for name, make in group if not names.isdisjoint(self._saved_names[name])}
            if wanted:
                saved = revert_weight_conversion(base, wanted)
                yield from ((name, tensor) for name, tensor in saved.items() if name in names)


def _plain(base: PreTrainedModel, adapters: bool) -> Tensors:
    """Tensors under the names of the model without adapters, in module order, without tied copies."""
    tensors: Tensors = {}
    adapted: dict[str, Tensors] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            adapted[f"{name}."] = _merged(module) if adapters else _bare(module)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            wrapped: Any = module
            active = wrapped.modules_to_save[wrapped.active_adapters[0]]
            adapted[f"{name}."] = {key: (lambda tensor=tensor: tensor) for key, tensor in state_of(active).items()}
        elif is_quantised(getattr(module, "weight", None)) and not any(name.startswith(prefix) for prefix in adapted):
            adapted[f"{name}."] = tensors_of(module)
    done: set[str] = set()
    for name, tensor in state_of(base).items():
        prefix = next((prefix for prefix in adapted if name.startswith(prefix)), None)
        if prefix is None:
            tensors[name] = lambda tensor=tensor: tensor
        elif prefix not in done:
            done.add(prefix)
            tensors |= {prefix + key: make for key, make in adapted[prefix].items()}
    tied = getattr(base, "all_tied_weights_keys", None) or {}
    return {name: make for name, make in tensors.items() if name not in tied}


def _bare(layer: BaseTunerLayer) -> Tensors:
    """A layer's tensors without its adapters."""
    bare = layer.get_base_layer()
    if is_quantised(getattr(bare, "weight", None)):
        return tensors_of(bare)
    return {key: (lambda tensor=tensor: tensor) for key, tensor in state_of(bare).items()}


def _merged(layer: BaseTunerLayer) -> Tensors:
    """A layer's tensors with its active adapters merged. A copy is merged, because merging and unmerging the layer would round."""
    made: dict[str, Tensor] = {}

    def merged(key: str) -> Tensor:
        if not made:
            duplicate: Any = copy.deepcopy(layer)
            duplicate.merge()
            made.update(state_of(duplicate.get_base_layer()))
        return made.pop(key)

    return {key: (lambda key=key: merged(key)) for key in state_of(layer.get_base_layer())}


def _trained(base: PreTrainedModel) -> set[str]:
    """Plain names of the tensors that training changes."""
    trained = set()
    modules: Any = base.named_modules()
    for name, module in modules:
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        own: Any = module
        if any(parameter.requires_grad for parameter in own.parameters()):
            inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            trained |= {f"{name}.{key}" for key in state_of(inner)}
    return trained | {name for name, parameter in base.named_parameters() if parameter.requires_grad}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state dictionary, as they are now. `state_dict` itself would divide a gathered model again."""
    state: dict[str, Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        own = {name: tensor for name, tensor in part._buffers.items() if name not in part._non_persistent_buffers_set}
        for name, tensor in {**part._parameters, **own}.items():
            if tensor is not None:
                state[f"{prefix}.{name}" if prefix else name] = tensor.detach()
    return state


def _adapted_prefixes(base: PreTrainedModel) -> tuple[str, ...]:
    """Name prefixes of the modules whose tensors have an adapter merged into them."""
    return tuple(f"{name}." for name, module in base.named_modules() if isinstance(module, BaseTunerLayer))


def _text_prefixes(base: PreTrainedModel) -> tuple[str, ...]:
    """Name prefixes of the modules that image features do not depend on: the decoder and the head."""
    text = [base.get_decoder(), base.get_output_embeddings()]
    return tuple(f"{name}." for name, module in base.named_modules() if any(module is each for each in text))


def _layer(name: str) -> str:
    """The name up to and including the first number. Tensors of one layer are converted together."""
    parts = name.split(".")
    place = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return "" if place is None else ".".join(parts[: place + 1])
