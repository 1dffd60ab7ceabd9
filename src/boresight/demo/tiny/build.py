"""Tiny vision-language models of the real transformers classes, with random weights, built offline in about a second.

`build_tiny("qwen2_5_vl", folder)` writes a checkpoint that plain `from_pretrained` loads: configuration, weights, the
family's real processor, a tokenizer trained on the spot, its chat template and its stop ids. The other families that tests need are
in `tests/tiny`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from boresight.demo.tiny.qwen import qwen2_5_vl
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id
from boresight.errors import ConfigError, nearest
from boresight.modules import untrained

Family = Callable[[Sizes], Recipe]

FAMILIES: dict[str, Family] = {"qwen2_5_vl": qwen2_5_vl}


def build_tiny(family: str | Family, folder: Path | str, *, seed: int = 0, **sizes: int | float | bool | None) -> Path:
    """Write a tiny model of `family` with random weights to `folder`, and return the folder.

    Args:
        family: a name in `FAMILIES`, or what makes a family from its sizes.
        seed: of the weights. torch's global generator is left as it was.
        sizes: fields of `Sizes`.

    Raises:
        ConfigError: an unknown family or size, or sizes that do not fit together.
    """
    if isinstance(family, str) and family not in FAMILIES:
        raise ConfigError(f"Unknown family {family!r}; there is {', '.join(FAMILIES)}.{nearest(family, FAMILIES)}")
    known = [field.name for field in fields(Sizes)]
    if unknown := [name for name in sizes if name not in known]:
        raise ConfigError(f"Unknown size {unknown[0]!r}; there are {', '.join(known)}.{nearest(unknown[0], known)}")
    wanted = Sizes(**sizes)  # pyright: ignore[reportArgumentType]
    recipe = (FAMILIES[family] if isinstance(family, str) else family)(wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = untrained(recipe.config)
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


MEMORY = -4.0
"""The bias of the step size in a recurrent layer (Gated DeltaNet, Mamba): a state fades over tens to hundreds of tokens, as in
published checkpoints. transformers initialises it to 1, which leaves little of a state after one token."""


@torch.no_grad()
def draw_weights(model: PreTrainedModel, initializer_range: float | None) -> None:
    """Redraw every weight matrix from a normal distribution; vectors (biases, gains) keep their initial values, but for `MEMORY`."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, initializer_range or weight[0].numel() ** -0.5)
        elif name.endswith(".dt_bias"):
            weight.fill_(MEMORY)
