"""What a model needs on some GPUs, from its config alone: memory of each way to train it, and a set-up that fits.

Weights, gradients and optimizer states are counted exactly, on a model without memory (`meta`). Activations are an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from boresight.errors import ModelError
from boresight.families import family_of
from boresight.model.head import MAX_LOGIT_BYTES
from boresight.trainer.memory_table import BFLOAT16, CHOICES

GB = 1e9
RESERVE = 0.1
"""Share of a GPU's memory that is left to the CUDA context, fragments and buffers of collectives."""
LAYER_BYTES = 34
"""Bytes of activations of one layer per token and unit of its width, in bf16: Korthikanti et al., arXiv 2205.05198, eq. 2, without
attention scores, which flash attention never stores."""
FLOPS = 400e12
"""bf16 operations per second of a GPU at work: 40 % of an H100's 989 · 10¹²."""
LORA_SHARE = 0.01
"""Trained share of the language model's weights with LoRA: 16 ranks on all linear layers of a 7B model are 0.6 %."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a plan needs to know of a model."""

    num_weights: int
    num_language: int
    """Weights of the language model and its head."""
    num_layers: int
    width: int
    """Of the language model's hidden states."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train, and its bytes per GPU."""

    name: str
    settings: tuple[tuple[str, Any], ...]
    """The options of a run, in the order of a YAML file."""
    weights: float
    gradients: float
    optimizer: float

    @property
    def num_bytes(self) -> float:
        return self.weights + self.gradients + self.optimizer


def size_of(model: str) -> Size:
    """The size of a model from its config.

    Raises:
        ModelError: there is no config of a vision-language model at that place.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            made: nn.Module = AutoModelForImageTextToText.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model!r} has no config of a vision-language model: {' '.join(str(error).split())}"
        ) from error
    family = family_of(config.model_type)
    text: Any = config.get_text_config()
    counts = [(family.part(name), weight.numel()) for name, weight in made.named_parameters()]
    return Size(
        num_weights=sum(count for _, count in counts),
        num_language=sum(count for part, count in counts if part == "language"),
        num_layers=text.num_hidden_layers,
        width=text.hidden_size,
    )


def ways(size: Size, num_gpus: int) -> list[Way]:
    """The ways to train, from the most that is learned to the least memory. AdamW, bf16, and no copy of a reference."""
    every, lora = size.num_weights, LORA_SHARE * size.num_language
    vision = every - size.num_language
    launch = (("accelerate_config", "multi_gpu" if num_gpus > 1 else "single_gpu"), ("num_processes", num_gpus))
    bf16, adapter = ("bf16", True), (("use_peft", True), ("lora_target_modules", "all-linear"))
    rounded = (("dtype", "bfloat16"), ("bf16_stochastic_round", True))
    small = ("optim", "adamw_torch_8bit")

    def full(name: str, *options: tuple[str, Any]) -> Way:
        each = CHOICES[name]
        return Way(name, (bf16, *options, *launch), each.weight * every, each.gradient * every, each.optimizer * every)

    def beside(name: str, *options: tuple[str, Any]) -> Way:
        each = CHOICES[name]
        # Quantisation is of linear layers; the vision tower and the embeddings of small models are counted with them.
        weights = each.base * size.num_language + BFLOAT16 * vision + each.weight * lora
        return Way(name, (bf16, *options, *adapter, *launch), weights, each.gradient * lora, each.optimizer * lora)

    found = [full("full")]
    if num_gpus > 1:
        each = CHOICES["full"]
        shard = every / num_gpus
        for name, kept in (("fsdp2", 1.0), ("fsdp2_offload", 0.0)):
            divided = (bf16, ("accelerate_config", name), ("num_processes", num_gpus))
            # The whole weights of a step in bf16 and its gradients in float32, beside the shards, which offload keeps in the CPU's memory.
            weights = BFLOAT16 * every + kept * each.weight * shard
            gradients = each.gradient * every + kept * each.gradient * shard
            found.append(Way(f"full, {name}", divided, weights, gradients, kept * each.optimizer * shard))
    found += [
        full("full, 8-bit optimizer", small),
        full("full, bf16 with stochastic rounding", *rounded),
        full("full, bf16 with stochastic rounding, 8-bit optimizer", *rounded, small),
        beside("LoRA"),
        beside("LoRA, 8-bit base", ("load_in_8bit", True)),
        beside("LoRA, 4-bit base", ("load_in_4bit", True)),
    ]
    return found


def token_bytes(size: Size) -> float:
    """Bytes of activations of a token in a micro-batch, with gradient checkpointing: the input of every layer, and one layer at work."""
    return 2 * size.num_layers * size.width + LAYER_BYTES * size.width


def tokens_that_fit(size: Size, way: Way, memory: float) -> int:
    """Packed tokens of a micro-batch that fit beside a way's weights; 0 where the weights alone do not.

    Args:
        memory: bytes of a GPU.
    """
    free = memory * (1 - RESERVE) - way.num_bytes - 3 * MAX_LOGIT_BYTES
    return max(0, int(free / token_bytes(size)))


def step_seconds(size: Size, num_tokens: int, num_gpus: int) -> float:
    """Seconds of an update over so many tokens: two operations per weight and token forward, four backward, two for checkpointing."""
    return 8 * size.num_weights * num_tokens / (FLOPS * num_gpus)


def plan(model: str, num_gpus: int, memory_gb: float) -> tuple[Table, str]:
    """The table of all ways, and the options of the first that fits, as YAML.

    Args:
        model: a folder or a hub id; only its config is read.
        num_gpus: GPUs of the run.
        memory_gb: of each GPU, in 10⁹ bytes.

    Raises:
        ModelError: the model has no config, or nothing fits.
    """
    size = size_of(model)
    found = ways(size, num_gpus)
    tokens = [tokens_that_fit(size, way, memory_gb * GB) for way in found]
    table = Table(
        title=f"{model}: {size.num_weights / 1e9:.2f} billion weights on {num_gpus} × {memory_gb:g} GB",
        caption=f"An update over 100,000 tokens takes about {step_seconds(size, 100_000, num_gpus):.1f} s at "
        f"{FLOPS / 1e12:.0f} · 10¹² operations per second. Sampling comes on top.",
    )
    for heading in ("way", "weights GB", "gradients GB", "optimizer GB", "tokens of a micro-batch"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for way, count in zip(found, tokens, strict=True):
        parts = (f"{part / GB:.1f}" for part in (way.weights, way.gradients, way.optimizer))
        table.add_row(way.name, *parts, f"{count:,}" if count else "does not fit")
    best = first_that_fits(found, tokens)
    if best is None:
        raise ModelError(
            f"{model} fits in no way on {num_gpus} GPUs of {memory_gb:g} GB; the smallest needs {found[-1].num_bytes / GB:.0f} GB on each: "
            "use larger GPUs or a smaller model."
        )
    way, count = best
    settings = (("model_name_or_path", model), *way.settings, ("max_tokens_per_pass", count))
    return table, "".join(
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}\n" for name, value in settings
    )


MIN_TOKENS = 4096
"""A micro-batch of fewer tokens holds hardly a prompt with an image and its completions."""


def first_that_fits(found: Sequence[Way], tokens: Sequence[int]) -> tuple[Way, int] | None:
    """The first way whose micro-batch holds `MIN_TOKENS`, with the tokens of its micro-batch, at most 32,768."""
    for way, count in zip(found, tokens, strict=True):
        if count >= MIN_TOKENS:
            return way, min(count, 32_768)
    return None
