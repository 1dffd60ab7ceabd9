"""Cohere's line."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.qwen import deepstack, interleaved, qwen3_tower
from tests.tiny.recipes import head_dim, ids, patches, recipe, siglip, square, tokenizer_of

COMPASS = {
    "image_token_id": "<|IMAGE_PAD|>",
    "video_token_id": "<|VIDEO_PAD|>",
    "vision_start_token_id": "<|VISION_START|>",
    "vision_end_token_id": "<|VISION_END|>",
}


def aya_vision(sizes: Sizes) -> Recipe:
    """Tiles of a SigLIP tower, 2×2 patches shuffled into a token, on Cohere 2."""
    marks = (
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
        "<image>",
    )
    tokenizer = tokenizer_of(sizes, "<image>", *marks)
    return recipe(
        sizes,
        tokenizer,
        transformers.AyaVisionConfig,
        transformers.AyaVisionProcessor,
        text={
            "model_type": "cohere2",
            "head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision=siglip(sizes, patch_size=sizes.patch_size),
        processor={
            "image_processor": transformers.GotOcr2ImageProcessor(
                size=square(sizes), crop_to_patches=True, max_patches=4
            ),
            "patch_size": sizes.patch_size,
            "img_size": sizes.tile_size,
            "downsample_factor": 2,
        },
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
        **ids(tokenizer, image_token_index="<|IMG_PATCH|>"),
    )


def cohere2_vision(sizes: Sizes) -> Recipe:
    named = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer = tokenizer_of(sizes, "<|IMG_PATCH|>", named=named)
    processor = transformers.Cohere2VisionImageProcessor(size=square(sizes), max_patches=4, patch_size=2)
    return recipe(
        sizes,
        tokenizer,
        transformers.Cohere2VisionConfig,
        transformers.Cohere2VisionProcessor,
        text={
            "model_type": "cohere2",
            "head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision=siglip(sizes, patch_size=sizes.patch_size),
        processor={"image_processor": processor},
        alignment_intermediate_size=64,
        **ids(tokenizer, image_token_id="<|IMG_PATCH|>"),
    )


def cohere_compass(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>", *COMPASS.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.CohereCompassConfig,
        transformers.CohereCompassProcessor,
        text={
            "head_dim": head_dim(sizes),
            "rope_parameters": {"sliding_attention": interleaved(sizes), "full_attention": interleaved(sizes)},
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision=sizes.qwen_vision() | qwen3_tower(sizes) | deepstack(sizes),
        processor={
            "image_processor": transformers.CohereCompassImageProcessor(**patches(sizes)),
            "video_processor": transformers.CohereCompassVideoProcessor(**patches(sizes)),
        },
        **ids(tokenizer, **COMPASS),
    )
