"""The rest of the Qwen-VL line, but for Qwen3.5 (see `hybrid`)."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.qwen import mrope, qwen_recipe
from boresight.demo.tiny.sizes import Recipe, Sizes


def qwen2_vl(sizes: Sizes) -> Recipe:
    return qwen_recipe(
        sizes,
        transformers.Qwen2VLConfig,
        transformers.Qwen2VLProcessor,
        transformers.Qwen2VLVideoProcessor,
        text={"rope_parameters": mrope(sizes, 3 * sizes.half_head_dim // 8)},
        vision={"embed_dim": sizes.vision_hidden_size, "hidden_size": sizes.hidden_size, "mlp_ratio": 2},
        default_system="You are a helpful assistant.",
    )


def qwen3_vl(sizes: Sizes) -> Recipe:
    """DeepStack: features of the tower's earlier layers are added to the first layers of the language model."""
    return qwen_recipe(
        sizes,
        transformers.Qwen3VLConfig,
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        text={
            "head_dim": sizes.hidden_size // sizes.num_heads,
            "rope_parameters": mrope(sizes, 5 * sizes.half_head_dim // 16) | {"mrope_interleaved": True},
        },
        vision=qwen3_tower(sizes) | {"deepstack_visual_indexes": list(range(max(1, sizes.vision_depth - 1)))},
        default_system=None,
    )


def qwen3_tower(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "out_hidden_size": sizes.hidden_size,
        "num_position_embeddings": 64,
    }
