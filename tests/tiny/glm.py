"""The GLM-V line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import head_dim, ids, patches, recipe, tokenizer_of

MARKS = {"image_start_token_id": "<|begin_of_image|>", "image_end_token_id": "<|end_of_image|>"}
VIDEO = {"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"}
TOKENS = {"image_token_id": "<|image|>", "video_token_id": "<|video|>", **MARKS, **VIDEO}


def glm(
    sizes: Sizes,
    config_class: Callable[..., Any],
    *,
    kind: str = "Glm4v",
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Recipe:
    """A tower of any resolution with a 2×2 merge, M-RoPE in the language model."""
    tokenizer = tokenizer_of(sizes, "<|begin_of_image|><|image|><|end_of_image|>", *TOKENS.values())
    spatial = sizes.half_head_dim // 8
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [sizes.half_head_dim // 2 - 2 * spatial, spatial, spatial],
    }
    return recipe(
        sizes,
        tokenizer,
        config_class,
        getattr(transformers, f"{kind}Processor"),
        text={"rope_parameters": rope, "head_dim": head_dim(sizes), **(text or {})},
        vision=sizes.qwen_vision()
        | {
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "out_hidden_size": sizes.hidden_size,
            "image_size": 64,
            **(vision or {}),
        },
        processor={
            "image_processor": getattr(transformers, f"{kind}ImageProcessor")(**patches(sizes)),
            "video_processor": getattr(transformers, f"{kind}VideoProcessor")(**patches(sizes)),
        },
        tied=False,
        **ids(tokenizer, **TOKENS),
    )


def glm4v(sizes: Sizes) -> Recipe:
    return glm(sizes, transformers.Glm4vConfig)


def glm46v(sizes: Sizes) -> Recipe:
    return glm(
        sizes,
        transformers.Glm46VConfig,
        kind="Glm46V",
        text={"model_type": "glm4v_text"},
        vision={"model_type": "glm4v_vision"},
    )


def glm4v_moe(sizes: Sizes) -> Recipe:
    """The first layer dense, the others with four experts and a shared one."""
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return glm(sizes, transformers.Glm4vMoeConfig, text=experts)


def glm_ocr(sizes: Sizes) -> Recipe:
    return glm(sizes, transformers.GlmOcrConfig)
