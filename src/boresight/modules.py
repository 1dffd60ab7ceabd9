"""Functions on torch modules that every room may use, whatever the model and its wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, Cache, PreTrainedModel

Value = TypeVar("Value")


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, torch.compile and PEFT wrappers; adapters stay in its layers."""
    for name in ("module", "_orig_mod"):
        while hasattr(model, name):
            model = getattr(model, name)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue, reportReturnType]


def untrained(config: Any) -> PreTrainedModel:
    """The model of a config, with random weights; of a whole Qwen-Omni model, its thinker.

    Raises:
        ValueError: it is not the config of a vision-language model.
    """
    config = getattr(config, "thinker_config", config)
    is_listed = type(config) in AutoModelForImageTextToText._model_mapping
    # Models that read images and sounds are listed elsewhere (Phi-4-multimodal).
    return (AutoModelForImageTextToText if is_listed else AutoModelForMultimodalLM).from_config(config)


def text_parameters(model: PreTrainedModel) -> set[nn.Parameter]:
    """The parameters of the language model and its head, which image features do not depend on."""
    head = model.get_output_embeddings()
    return {*model.get_decoder().parameters(), *(head.parameters() if head is not None else ())}


def matching_arguments(function: Callable[..., object], arguments: Mapping[str, Value]) -> dict[str, Value]:
    """The `arguments` that `function` has parameters for."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def named_cache(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The cache as the argument that the model's forward takes: `cache` from transformers 5.24 on, which warns of the old name."""
    names = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in names else "past_key_values": cache}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; afterwards every module returns to its former mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def checkpoint_activations(model: nn.Module, options: Mapping[str, Any] | None = None) -> None:
    """Recompute activations in backward passes, by the method that this release of transformers names.

    Args:
        options: arguments of `torch.utils.checkpoint.checkpoint`.
    """
    new = getattr(
        model, "activation_checkpointing_enable", None
    )  # from transformers 5.24 on, which warns of the old name
    (new or model.gradient_checkpointing_enable)(options)  # pyright: ignore[reportCallIssue]


def switch_off_dropout(model: nn.Module) -> None:
    """Set the probability of every dropout to 0: of modules, and of modules that call the function (`self.dropout`)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def redirected(module: nn.Module, forward: Callable[[], object]) -> Iterator[None]:
    """For one call, `module(…)` runs `forward`, so that a wrapper's own forward, with its hooks, calls it. The module's own forward is back
    in place while `forward` runs, which may call it."""
    before = module.__dict__.get("forward")

    def restore() -> None:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = before

    def once() -> object:
        restore()
        return forward()

    module.forward = once
    try:
        yield
    finally:
        restore()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that FSDP2 divides over ranks; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---- Quantised weights -----------------------------------------------------------------------------------------------------------------


def is_quantised(weight: Any) -> bool:
    """Whether a weight holds codes instead of numbers, which may themselves have a floating-point dtype (`bnb_4bit_quant_storage`)."""
    is_codes = isinstance(weight, nn.Parameter) and not (weight.is_floating_point() or weight.is_complex())
    return is_codes or type(weight).__name__ in ("Params4bit", "Int8Params")


def quantisation(model: nn.Module) -> str | None:
    """How a model's weights are quantised: "4-bit", "8-bit", or another method's name; None if they are not."""
    inner: Any = unwrap(model)
    if getattr(inner, "is_loaded_in_4bit", False):
        return "4-bit"
    if getattr(inner, "is_loaded_in_8bit", False):
        return "8-bit"
    method = getattr(inner, "quantization_method", None)
    return None if method is None else str(getattr(method, "value", method))


def num_weights(weight: nn.Parameter) -> int:
    """How many numbers a weight stands for. Two of 4 bits share a byte."""
    state: Any = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def num_bytes(weight: nn.Parameter) -> int:
    """Bytes of a weight, with the scales of a quantised one."""
    states: list[Any] = [getattr(weight, "quant_state", None)]
    if states[0] is not None:
        states.append(states[0].state2)  # scales that are quantised themselves
    scales = [state.absmax for state in states if state is not None]
    scales += [each for name in ("SCB",) if isinstance(each := getattr(weight, name, None), Tensor)]
    return weight.numel() * weight.element_size() + sum(each.numel() * each.element_size() for each in scales)


def computes_coarsely(model: nn.Module) -> bool:
    """Whether quantised layers round what they compute: those of 8 bits round their inputs, those of 4 bits may compute in 16 bits, and
    of other methods nothing is known."""
    kind = quantisation(model)
    if kind is None:
        return False
    own: set[Any] = {getattr(module, "compute_dtype", None) for module in model.modules()} - {None}
    return kind != "4-bit" or not own <= {torch.float32, torch.float64}
