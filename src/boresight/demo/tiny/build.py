"""Tiny vision-language models of the real transformers classes, with random weights, built offline in about a second.

`build_tiny("qwen2_5_vl", folder)` writes a checkpoint that plain `from_pretrained` loads: configuration, weights, the
family's real processor, a tokenizer trained on the spot, its chat template and its stop ids. Every family keeps what
makes it itself (window attention, DeepStack, tiles, sliding layers), and ties its head as its published checkpoints do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from boresight.demo.tiny.gemma import gemma3
from boresight.demo.tiny.idefics import idefics3, smolvlm
from boresight.demo.tiny.internvl import internvl
from boresight.demo.tiny.llava import llava, llava_next, llava_onevision
from boresight.demo.tiny.qwen import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id
from boresight.errors import ConfigError, nearest

FAMILIES: dict[str, Callable[[Sizes], Recipe]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
    "smolvlm": smolvlm,
    "idefics3": idefics3,
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "gemma3": gemma3,
}


def build_tiny(family: str, folder: Path | str, *, seed: int = 0, **sizes: int | float | bool | None) -> Path:
    """Write a tiny model of `family` with random weights to `folder`, and return the folder.

    Args:
        family: a name in `FAMILIES`.
        seed: of the weights. torch's global generator is left as it was.
        sizes: fields of `Sizes`.

    Raises:
        ConfigError: an unknown family or size, or sizes that do not fit together.
    """
    if family not in FAMILIES:
        raise ConfigError(f"Unknown family {family!r}; there are {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
    known = [field.name for field in fields(Sizes)]
    if unknown := [name for name in sizes if name not in known]:
        raise ConfigError(f"Unknown size {unknown[0]!r}; there are {', '.join(known)}.{nearest(unknown[0], known)}")
    wanted = Sizes(**sizes)  # pyright: ignore[reportArgumentType]
    recipe = FAMILIES[family](wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(recipe.config)
        draw_weights(model, wanted.initializer_range)
    tokenizer = recipe.processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[token_id(tokenizer, token) for token in recipe.stop_tokens],
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = Path(folder)
    model.save_pretrained(folder)
    recipe.processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def draw_weights(model: PreTrainedModel, initializer_range: float | None) -> None:
    """Redraw every weight matrix from a normal distribution; vectors (biases, gains) keep their initial values."""
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, initializer_range or weight[0].numel() ** -0.5)
