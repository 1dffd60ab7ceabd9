"""MiniCPM-V: slices of an image, on Qwen3.5's layers."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import head_dim, ids, recipe, tokenizer_of

MINICPM = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def minicpm(sizes: Sizes, version: str) -> Recipe:
    """Slices of an image through a tower that merges their patches, on Qwen3.5."""
    tokenizer = tokenizer_of(sizes, "<|image_pad|>", named=MINICPM)
    options: dict[str, Any] = {"max_slice_nums": 4, "scale_resolution": 64, "patch_size": sizes.patch_size}
    return recipe(
        sizes,
        tokenizer,
        getattr(transformers, f"MiniCPMV{version}Config"),
        getattr(transformers, f"MiniCPMV{version}Processor"),
        text={
            "model_type": "qwen3_5_text",
            "head_dim": head_dim(sizes),
            "layer_types": ["linear_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "linear_num_key_heads": sizes.num_kv_heads,
            "linear_num_value_heads": sizes.num_heads,
            "linear_key_head_dim": head_dim(sizes),
            "linear_value_head_dim": head_dim(sizes),
        },
        vision=sizes.vision() | {"image_size": 128, "patch_size": sizes.patch_size, "insert_layer_id": 0},
        processor={
            "image_processor": transformers.MiniCPMV4_6ImageProcessor(**options),
            "video_processor": transformers.MiniCPMV4_6VideoProcessor(**options),
        },
        insert_layer_id=0,
        image_size=64,
        patch_size=sizes.patch_size,
        **ids(tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>"),
    )


def minicpmv4_6(sizes: Sizes) -> Recipe:
    return minicpm(sizes, "4_6")


def minicpmv4_7(sizes: Sizes) -> Recipe:
    """The slices' canvas decides about positions."""
    return minicpm(sizes, "4_7")
