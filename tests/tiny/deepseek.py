"""DeepSeek-VL, Janus, and what is built like them: one square image, a fixed number of tokens."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import ids, recipe, siglip, square, tokenizer_of

NAMED = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}


def deepseek_vl(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image_placeholder>", named=NAMED)
    return recipe(
        sizes,
        tokenizer,
        transformers.DeepseekVLConfig,
        transformers.DeepseekVLProcessor,
        text={"model_type": "llama"},
        vision=siglip(sizes),
        processor={
            "image_processor": transformers.DeepseekVLImageProcessor(size=square(sizes), min_size=8),
            "num_image_tokens": sizes.tokens_per_tile,
        },
        tied=False,
        **ids(tokenizer, image_token_id="<image_placeholder>"),
    )


def sam(sizes: Sizes) -> dict[str, Any]:
    """A tower for images of four times the size: 8×8 patches of it, brought down to 2×2 by its neck and the aligner."""
    return {
        "model_type": "sam_vision_model",
        "hidden_size": sizes.vision_hidden_size,
        "mlp_dim": 2 * sizes.vision_hidden_size,
        "num_hidden_layers": sizes.vision_depth,
        "num_attention_heads": sizes.vision_heads,
        "image_size": 4 * sizes.tile_size,
        "patch_size": sizes.token_size,
        "output_channels": 16,
        "window_size": 4,
        "global_attn_indexes": [sizes.vision_depth - 1],
    }


def deepseek_vl_hybrid(sizes: Sizes) -> Recipe:
    """A second tower for a larger copy of the image."""
    tokenizer = tokenizer_of(sizes, "<image_placeholder>", named=NAMED)
    large = {"height": 4 * sizes.tile_size, "width": 4 * sizes.tile_size}
    return recipe(
        sizes,
        tokenizer,
        transformers.DeepseekVLHybridConfig,
        transformers.DeepseekVLHybridProcessor,
        text={"model_type": "llama"},
        vision=siglip(sizes),
        processor={
            "image_processor": transformers.DeepseekVLHybridImageProcessor(
                size=square(sizes), high_res_size=large, min_size=8, high_res_min_size=8
            ),
            "num_image_tokens": sizes.tokens_per_tile,
        },
        tied=False,
        high_res_vision_config=sam(sizes),
        **ids(tokenizer, image_token_id="<image_placeholder>"),
    )


def janus(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image_placeholder>", named=NAMED)
    return recipe(
        sizes,
        tokenizer,
        transformers.JanusConfig,
        transformers.JanusProcessor,
        text={"model_type": "llama"},
        vision={
            "hidden_size": sizes.vision_hidden_size,
            "num_hidden_layers": sizes.vision_depth,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.tile_size,
            "patch_size": sizes.token_size,
            "mlp_ratio": 2,
            "projection_dim": sizes.hidden_size,
            "num_image_tokens": sizes.tokens_per_tile,
            "depth": 1,
        },
        processor={
            "image_processor": transformers.JanusImageProcessor(size=square(sizes), min_size=8),
            "num_image_tokens": sizes.tokens_per_tile,
        },
        tied=False,
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "latent_channels": 8,
            "num_patches": 4,
            "image_token_embed_dim": 8,
            "projection_dim": sizes.hidden_size,
        },
        **ids(tokenizer, image_token_id="<image_placeholder>"),
    )
