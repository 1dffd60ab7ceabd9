"""The rest of the Qwen-VL line, but for Qwen3.5 (see `hybrid`), and the families that took over its vision tower and processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from boresight.demo.tiny.qwen import mrope, qwen_recipe
from boresight.demo.tiny.sizes import Recipe, Sizes

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
"""Four experts in every layer, two of them per token."""


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


def qwen3_line(sizes: Sizes, config_class: Callable[..., Any], text: dict[str, Any], vision: dict[str, Any]) -> Recipe:
    """Qwen3-VL's processor and tower, whatever the language model."""
    return qwen_recipe(
        sizes,
        config_class,
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        text={
            "head_dim": sizes.hidden_size // sizes.num_heads,
            "rope_parameters": interleaved(sizes),
            **text,
        },
        vision=qwen3_tower(sizes) | vision,
        default_system=None,
    )


def interleaved(sizes: Sizes) -> dict[str, Any]:
    return mrope(sizes, 5 * sizes.half_head_dim // 16) | {"mrope_interleaved": True}


def qwen3_tower(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "out_hidden_size": sizes.hidden_size,
        "num_position_embeddings": 64,
    }


def deepstack(sizes: Sizes) -> dict[str, Any]:
    return {"deepstack_visual_indexes": list(range(max(1, sizes.vision_depth - 1)))}


def qwen3_vl(sizes: Sizes) -> Recipe:
    """DeepStack: features of the tower's earlier layers are added to the first layers of the language model."""
    return qwen3_line(sizes, transformers.Qwen3VLConfig, {}, deepstack(sizes))


def qwen3_vl_moe(sizes: Sizes) -> Recipe:
    return qwen3_line(sizes, transformers.Qwen3VLMoeConfig, EXPERTS, deepstack(sizes))
