"""What most families' recipes have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerFast

from boresight.demo.tiny.qwen import chatml, content
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer

END, PAD = "<|im_end|>", "<|endoftext|>"


def tokenizer_of(
    sizes: Sizes,
    image: str,
    *tokens: str,
    named: Mapping[str, str] | None = None,
    bos: str | None = None,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer whose chat template, if none is given, is ChatML.

    Args:
        image: what the template puts for an image: the placeholder with the family's marks around it.
        tokens: special tokens.
        named: special tokens that the processor reads as attributes of its tokenizer.
        bos: put before every text.
    """
    special = dict.fromkeys((PAD, "<|im_start|>", END, *tokens, *(named or {}).values(), *([bos] if bos else ())))
    return trained_tokenizer(
        tuple(special),
        eos_token=END,
        pad_token=PAD,
        bos_token=bos,
        named_tokens=named,
        vocab_size=sizes.vocab_size,
        chat_template=template or chatml(content(image)),
    )


def ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    """The ids of tokens, under the names of config fields."""
    return {name: token_id(tokenizer, token) for name, token in tokens.items()}


def recipe(
    sizes: Sizes,
    tokenizer: PreTrainedTokenizerFast,
    config_class: Callable[..., Any],
    processor_class: Callable[..., Any],
    *,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    processor: Mapping[str, Any],
    tied: bool = True,
    **config: Any,
) -> Recipe:
    """A recipe from a config's two parts and a processor's own parts.

    Args:
        tied: whether published checkpoints tie the head.
        config: further fields of the config.
    """
    built = config_class(
        text_config=sizes.text(tokenizer, tied=tied) | dict(text),
        vision_config=dict(vision),
        tie_word_embeddings=sizes.tied(tied),
        **config,
    )
    made = processor_class(tokenizer=tokenizer, chat_template=tokenizer.chat_template, **processor)
    return Recipe(built, made, (END, PAD))


def square(sizes: Sizes) -> dict[str, int]:
    return {"height": sizes.tile_size, "width": sizes.tile_size}


def patches(sizes: Sizes) -> dict[str, Any]:
    """Options of an image processor that cuts an image of any size into patches, as Qwen2-VL's does."""
    return {
        "size": {"shortest_edge": (2 * sizes.token_size) ** 2, "longest_edge": sizes.max_pixels},
        "patch_size": sizes.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


def siglip(sizes: Sizes, **further: Any) -> dict[str, Any]:
    """A SigLIP tower over one square, one patch per image token."""
    return sizes.vision() | {
        "model_type": "siglip_vision_model",
        "image_size": sizes.tile_size,
        "patch_size": sizes.token_size,
        "vision_use_head": False,
        **further,
    }


def head_dim(sizes: Sizes) -> int:
    return sizes.hidden_size // sizes.num_heads
