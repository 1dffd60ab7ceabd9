"""Weights in 4 or 8 bits by bitsandbytes: how a model is loaded with them, and what they are as floating-point numbers.

bitsandbytes quantises the weights of linear layers in blocks (4 bits: Dettmers et al., QLoRA, arXiv 2305.14314) or rows (8 bits: Dettmers
et al., LLM.int8(), arXiv 2208.07339). They are never trained; adapters beside them are.

Two faults of its CPU kernels (0.50) would change numbers in silence, and are kept out here. Layers of 4 bits whose width is not a multiple
of the block are read with wrong scales, so they are left as they were. And in evaluation mode the weights are packed anew with scales in
bfloat16, for good, so that a pass without gradients would change the model being trained: packing is switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from boresight.errors import ConfigError, ModelError
from boresight.modules import is_quantised, quantisation, untrained, unwrap

logger = logging.getLogger(__name__)

BLOCK = 64
"""Weights of 4 bits that share a scale: bitsandbytes' default, which transformers does not change."""
# It speaks of kernels for packed weights, which are switched off here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "gemm_4bit_forward" not in record.getMessage()
)

EXTRA = "pip install 'boresight[quantised]'"


# ---- Loading -------------------------------------------------------------------------------------------------------------------------


def quantised_options(model: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a quantised model.

    A `quantization_config` of bitsandbytes, as an object or a mapping, also names the layers that its CPU kernels cannot read in 4 bits
    (`unreadable`), if the model will be on a CPU. They are logged. Any other configuration is returned as it is.

    Args:
        model: a folder or a hub id; its config is read.
        options: with or without a `quantization_config`.

    Raises:
        ConfigError: the mapping has an entry that bitsandbytes does not know, or asks for neither 4 nor 8 bits; or bitsandbytes is missing.
    """
    given = options.get("quantization_config")
    if given is None:
        return dict(options)
    config = read_quantisation(given)
    if not isinstance(config, BitsAndBytesConfig):
        return {**options, "quantization_config": config}
    _check_installed()
    if config.load_in_4bit and _goes_to_cpu(options):
        config = _leaving_out(model, config, options)
    return {**options, "quantization_config": config}


def read_quantisation(given: Any) -> Any:
    """A configuration as an object: a mapping of bitsandbytes' options becomes one, anything else is returned.

    Raises:
        ConfigError: as `quantised_options`.
    """
    if not isinstance(given, Mapping) or given.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return given
    own = {name.removeprefix("_"): value for name, value in given.items() if name != "quant_method"}
    try:
        config: Any = BitsAndBytesConfig(**own)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"quantization_config={dict(given)!r}: {error}") from error
    if unknown := [name for name in own if not hasattr(config, name)]:
        raise ConfigError(f"quantization_config: bitsandbytes has no option {unknown[0]!r}.")
    if not (config.load_in_4bit or config.load_in_8bit):
        raise ConfigError("quantization_config quantises nothing: set load_in_4bit or load_in_8bit, or drop it.")
    return config


def _check_installed() -> None:
    try:
        import bitsandbytes  # noqa: F401 -- an optional extra, slow to import
    except ImportError as error:
        raise ConfigError(f"Weights in 4 or 8 bits need bitsandbytes: {EXTRA}") from error
    _once_each(logging.getLogger("bitsandbytes.autograd._functions"))


def _goes_to_cpu(options: Mapping[str, Any]) -> bool:
    """Whether the model will be on a CPU: transformers puts quantised models on a GPU if there is one."""
    asked = options.get("device_map")
    devices = asked.values() if isinstance(asked, Mapping) else []
    return not torch.cuda.is_available() or any(torch.device(device).type == "cpu" for device in devices)


def _leaving_out(model: str | Path, config: BitsAndBytesConfig, options: Mapping[str, Any]) -> BitsAndBytesConfig:
    """The configuration, which also leaves out the layers that cannot be read."""
    where = {key: options[key] for key in ("revision", "cache_dir", "token", "trust_remote_code") if key in options}
    with torch.device("meta"):
        shapes: Any = untrained(AutoConfig.from_pretrained(model, **where))
    skipped = config.llm_int8_skip_modules
    skipped = get_keys_to_not_convert(shapes) if skipped is None else list(skipped)
    found = [name for name in unreadable(shapes) if not any(name.startswith(f"{other}.") for other in skipped)]
    added = [name for name in found if name not in skipped]
    if not added:
        return config
    copied: Any = BitsAndBytesConfig.from_dict({**config.to_dict(), "llm_int8_skip_modules": [*skipped, *added]})
    logger.warning(
        "%d layers stay as they are, because bitsandbytes reads 4-bit weights on a CPU only if their width is a multiple of %d: %s. To "
        "load the same model elsewhere, pass llm_int8_skip_modules=%r.",
        len(added),
        BLOCK,
        ", ".join(added),
        copied.llm_int8_skip_modules,
    )
    return copied


def unreadable(model: nn.Module) -> list[str]:
    """Names of the linear layers that bitsandbytes' CPU kernels would read wrongly in 4 bits: blocks cross their rows."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.in_features % BLOCK != 0
    ]


def settle(model: nn.Module) -> nn.Module:
    """Make a loaded model's quantised layers compute the same in training and evaluation.

    Raises:
        ModelError: a layer of 4 bits on a CPU is one that cannot be read there, as in a checkpoint that was quantised elsewhere.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        layer: Any = module
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % layer.weight.quant_state.blocksize:
            raise ModelError(
                f"{name} is {layer.in_features} wide, and bitsandbytes reads 4-bit weights on a CPU only if the width is a multiple of "
                f"{layer.weight.quant_state.blocksize}: load this checkpoint on a GPU, or quantise its unquantised original here."
            )
    return model


def check_trains_adapter(model: nn.Module, *, is_adapted: bool) -> None:
    """Refuse to train a quantised model without an adapter.

    Raises:
        ConfigError: the message names the way out.
    """
    if (bits := quantisation(model)) and not is_adapted:
        raise ConfigError(
            f"The base is quantised ({bits}), so its weights cannot be trained in full. Train an adapter beside them: "
            "peft_config=LoraConfig(…) or train='language=lora' (--train language=lora, --use_peft). Or load it without load_in_4bit, "
            "load_in_8bit and quantization_config."
        )


def _once_each(log: logging.Logger) -> None:
    """Let a library say each thing once; some say it at every layer of every pass."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return text not in said and not said.add(text)

    if not getattr(log, "_says_once", False):
        log.addFilter(is_new)
        log._says_once = True  # pyright: ignore[reportAttributeAccessIssue]


# ---- As floating-point numbers -------------------------------------------------------------------------------------------------------


def tensors_of(module: nn.Module) -> dict[str, Any]:
    """Name → a function that returns the tensor, for the tensors of a quantised linear layer, as floating-point numbers."""
    bias: Any = module.bias
    return {"weight": lambda: dequantised(module)} | ({} if bias is None else {"bias": lambda: bias})


@torch.no_grad()
def dequantised(module: nn.Module) -> Tensor:
    """[out, in] The weight that a quantised linear layer computes with: float32, or the dtype that it was quantised from."""
    from peft.utils.integrations import dequantize_module_weight  # imports bitsandbytes, which is slow and optional

    return dequantize_module_weight(module).detach()


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers with quantised weights, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_quantised(module.weight):
            yield name, module


@torch.no_grad()
def dequantise(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model with its quantised layers replaced by plain ones that hold the same numbers. In place.

    Args:
        model: as loaded, without adapters.
        dtype: of the replaced weights.
    """
    inner: Any = unwrap(model)
    for name, module in list(quantised_layers(inner)):
        own: Any = module
        weight = dequantised(module).to(dtype)
        with torch.device("meta"):
            plain = nn.Linear(weight.shape[1], weight.shape[0], bias=own.bias is not None)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if (bias := own.bias) is not None:
            plain.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        inner.set_submodule(name, plain)
    forget_quantisation(inner.config)
    inner.hf_quantizer = None
    inner.is_quantized = inner.is_loaded_in_4bit = inner.is_loaded_in_8bit = False
    inner.quantization_method = None
    return model


def forget_quantisation(config: Any) -> None:
    """Remove from a model's configuration that its weights are quantised, for plain weights to be saved with it."""
    for name in ("quantization_config", "_pre_quantization_dtype", "_is_quantized"):
        if hasattr(config, name):
            delattr(config, name)
