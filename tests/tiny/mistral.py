"""Pixtral's tower: Mistral 3, LightOnOCR, and Pixtral itself under LLaVA's class."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import head_dim, ids, recipe, tokenizer_of

IMAGE = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}


def tower(sizes: Sizes) -> dict[str, Any]:
    return sizes.vision() | {
        "model_type": "pixtral",
        "image_size": 128,
        "patch_size": sizes.patch_size,
        "head_dim": sizes.vision_hidden_size // sizes.vision_heads,
    }


def images(sizes: Sizes, merge: int) -> dict[str, Any]:
    """A row of an image ends with a break token."""
    patch = sizes.patch_size
    return {
        "image_processor": transformers.PixtralImageProcessor(
            size={"longest_edge": 96}, patch_size={"height": patch * merge, "width": patch * merge}
        ),
        "patch_size": patch,
        "spatial_merge_size": merge,
    }


def mistral3(sizes: Sizes) -> Recipe:
    """A tower of any resolution with a 2×2 merge."""
    tokenizer = tokenizer_of(sizes, "[IMG]", *IMAGE.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.Mistral3Config,
        transformers.PixtralProcessor,
        text={"model_type": "mistral", "head_dim": head_dim(sizes), "sliding_window": None},
        vision=tower(sizes),
        processor=images(sizes, 2),
        tied=False,
        spatial_merge_size=2,
        vision_feature_layer=-1,
        **ids(tokenizer, image_token_index="[IMG]"),
    )


def lighton_ocr(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "[IMG]", named=IMAGE)
    return recipe(
        sizes,
        tokenizer,
        transformers.LightOnOcrConfig,
        transformers.LightOnOcrProcessor,
        text={"model_type": "qwen3", "head_dim": head_dim(sizes)},
        vision=tower(sizes),
        processor=images(sizes, 2),
        spatial_merge_size=2,
        **ids(tokenizer, image_token_id="[IMG]"),
    )


def pixtral_llava(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "[IMG]", *IMAGE.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.LlavaConfig,
        transformers.PixtralProcessor,
        text={"model_type": "mistral", "head_dim": head_dim(sizes), "sliding_window": None},
        vision=tower(sizes),
        processor=images(sizes, 1),
        tied=False,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **ids(tokenizer, image_token_index="[IMG]"),
    )
