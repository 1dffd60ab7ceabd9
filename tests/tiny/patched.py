"""Families that cut an image of any size into patches, other than Qwen's, GLM's and Cohere's own."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.qwen import mrope
from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.hybrid import delta_net
from tests.tiny.qwen import EXPERTS, deepstack, qwen3_line, qwen3_tower
from tests.tiny.recipes import head_dim, ids, patches, recipe, tokenizer_of

QWEN = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
MARKS = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}


def qwen2_5_tower(sizes: Sizes) -> dict[str, Any]:
    return sizes.qwen_vision() | {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "out_hidden_size": sizes.hidden_size,
        "window_size": 2 * sizes.token_size,
        "fullatt_block_indexes": [sizes.vision_depth - 1],
    }


def qwen_images(sizes: Sizes, videos: str = "Qwen2VLVideoProcessor") -> dict[str, Any]:
    return {
        "image_processor": transformers.Qwen2VLImageProcessor(**patches(sizes)),
        "video_processor": getattr(transformers, videos)(**patches(sizes)),
    }


def hyperclovax_vision_v2(sizes: Sizes) -> Recipe:
    """Qwen2.5-VL's tower on HyperCLOVA X, which multiplies its logits."""
    tokenizer = tokenizer_of(sizes, "<|image_pad|>", *QWEN.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.HyperCLOVAXVisionV2Config,
        transformers.HyperCLOVAXVisionV2Processor,
        text={"model_type": "hyperclovax", "head_dim": head_dim(sizes), "logits_scaling": 0.5},
        vision=qwen2_5_tower(sizes) | {"model_type": "qwen2_5_vl_vision"},
        processor=qwen_images(sizes),
        tied=False,
        **ids(tokenizer, **QWEN),
    )


def exaone4_5(sizes: Sizes) -> Recipe:
    """Qwen2.5-VL's tower with fewer keys than queries, on EXAONE 4 with sliding layers."""
    tokenizer = tokenizer_of(sizes, "<|image_pad|>", *QWEN.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.Exaone4_5_Config,
        transformers.Exaone4_5_Processor,
        text={
            "model_type": "exaone4",
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision=qwen2_5_tower(sizes) | {"num_key_value_heads": 1},
        processor=qwen_images(sizes),
        tied=False,
        **ids(tokenizer, **QWEN),
    )


def cosmos3_omni(sizes: Sizes) -> Recipe:
    return qwen3_line(
        sizes,
        transformers.Cosmos3OmniConfig,
        {"model_type": "qwen3_vl_text"},
        deepstack(sizes) | {"model_type": "qwen3_vl_vision"},
    )


def qwen4_exp(sizes: Sizes) -> Recipe:
    """Gated DeltaNet, experts, and several residual streams."""
    further = {
        "shared_expert_intermediate_size": 32,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [],
        "ple_embed_dim": 8,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    }
    text = delta_net(sizes) | EXPERTS | further
    return qwen3_line(sizes, transformers.Qwen4ExpConfig, text, {})


def video_llama_3(sizes: Sizes) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<|image_pad|>", *QWEN.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.VideoLlama3Config,
        transformers.VideoLlama3Processor,
        text={"model_type": "qwen2"},
        vision=sizes.vision() | {"patch_size": sizes.patch_size},
        processor={
            "image_processor": transformers.VideoLlama3ImageProcessor(
                min_pixels=32 * 32, max_pixels=sizes.max_pixels, patch_size=sizes.patch_size, merge_size=2
            ),
            "video_processor": transformers.VideoLlama3VideoProcessor(patch_size=sizes.patch_size, merge_size=2),
        },
        **ids(tokenizer, **QWEN),
    )


def paddleocr_vl(sizes: Sizes) -> Recipe:
    named = {"image_token": "<|IMAGE_PLACEHOLDER|>"}
    tokens = {**MARKS, "image_token_id": named["image_token"], "video_token_id": "<|video_pad|>"}
    tokenizer = tokenizer_of(
        sizes, "<|vision_start|><|IMAGE_PLACEHOLDER|><|vision_end|>", *tokens.values(), named=named
    )
    processor = transformers.PaddleOCRVLImageProcessor(
        size={"shortest_edge": 32 * 32, "longest_edge": sizes.max_pixels}, patch_size=sizes.patch_size, merge_size=2
    )
    return recipe(
        sizes,
        tokenizer,
        transformers.PaddleOCRVLConfig,
        transformers.PaddleOCRVLProcessor,
        text={"head_dim": head_dim(sizes), "rope_parameters": mrope(sizes, 2)},
        vision=sizes.vision() | {"image_size": 64, "patch_size": sizes.patch_size},
        processor={"image_processor": processor},
        **ids(tokenizer, **tokens),
    )


ERNIE = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}


def ernie4_5_vl_moe(sizes: Sizes) -> Recipe:
    """Experts of its own for the tokens of images."""
    tokenizer = tokenizer_of(sizes, "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", named=ERNIE)
    options = {name: value for name, value in patches(sizes).items() if name != "temporal_patch_size"}
    return recipe(
        sizes,
        tokenizer,
        transformers.Ernie4_5_VLMoeConfig,
        transformers.Ernie4_5_VLMoeProcessor,
        text={
            "rope_parameters": mrope(sizes, 3) | {"mrope_section": [3, 3, 2]},
            "moe_intermediate_size": [32, 16],
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "mlp_layer_types": ["dense"] + ["sparse"] * (sizes.num_layers - 1),
        },
        vision={
            "depth": sizes.vision_depth,
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_heads": sizes.vision_heads,
            "patch_size": sizes.patch_size,
        },
        processor={
            "image_processor": transformers.Ernie4_5_VLMoeImageProcessor(**options),
            "video_processor": transformers.Ernie4_5_VLMoeVideoProcessor(
                patch_size=sizes.patch_size, merge_size=2, draw_on_frames=False
            ),
        },
        **ids(tokenizer, **{f"{name}_id": token for name, token in ERNIE.items()}),
    )


def hunyuan_vl(sizes: Sizes) -> Recipe:
    """Rows of an image end with a token; four axes of positions."""
    named = {
        "image_token": "<img_token>",
        "image_start_token": "<img_start>",
        "image_end_token": "<img_end>",
        "image_newline_token": "<img_newline>",
    }
    tokenizer = tokenizer_of(sizes, "<img_start><img_token><img_end>", named=named)
    return recipe(
        sizes,
        tokenizer,
        transformers.HunYuanVLConfig,
        transformers.HunYuanVLProcessor,
        text={
            "head_dim": head_dim(sizes),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 2, 2, 2]},
        },
        vision=sizes.vision()
        | {
            "num_key_value_heads": sizes.vision_heads,
            "patch_size": sizes.patch_size,
            "out_hidden_size": sizes.hidden_size,
            "text_hidden_size": sizes.hidden_size,
            "max_image_size": 128,
            "min_image_size": 32,
            "max_vit_seq_len": 1024,
            "img_max_token_num": 64,
        },
        processor={
            "image_processor": transformers.HunYuanVLImageProcessor(
                size={"shortest_edge": 32 * 32, "longest_edge": sizes.max_pixels},
                patch_size=sizes.patch_size,
                temporal_patch_size=1,
                merge_size=2,
            )
        },
        **ids(
            tokenizer,
            image_token_id="<img_token>",
            im_start_id="<img_start>",
            im_end_id="<img_end>",
            im_newline_id="<img_newline>",
        ),
    )


def kimi_k25(sizes: Sizes) -> Recipe:
    """Latent attention (MLA) and experts."""
    tokens = {
        "image_token_id": "<|media_pad|>",
        "video_token_id": "<|kimi_k25_video_placeholder|>",
        "vision_start_token_id": "<|media_begin|>",
        "vision_end_token_id": "<|media_end|>",
    }
    tokenizer = tokenizer_of(
        sizes, "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>", "<|media_content|>", *tokens.values()
    )
    return recipe(
        sizes,
        tokenizer,
        transformers.Kimi_K25Config,
        transformers.Kimi_K25Processor,
        text={
            "model_type": "deepseek_v3",
            "num_key_value_heads": sizes.num_heads,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
        vision=sizes.vision() | {"patch_size": sizes.patch_size, "pos_emb_height": 8, "pos_emb_width": 8},
        processor={
            "image_processor": transformers.Kimi_K25ImageProcessor(patch_size=sizes.patch_size),
            "video_processor": transformers.Kimi_K25VideoProcessor(patch_size=sizes.patch_size),
        },
        tied=False,
        projection_hidden_size=sizes.vision_hidden_size,
        **ids(tokenizer, **tokens),
    )


def minimax_m3_vl(sizes: Sizes) -> Recipe:
    """Experts, and attention that picks blocks of keys by an index."""
    kind = transformers.MiniMaxM3VLProcessor
    marks = (kind.VISION_START_TOKEN, kind.IMAGE_TOKEN, kind.VISION_END_TOKEN)
    tokenizer = tokenizer_of(sizes, kind.IMAGE_TOKEN, *marks, kind.VIDEO_TOKEN)
    options = patches(sizes)
    return recipe(
        sizes,
        tokenizer,
        transformers.MiniMaxM3VLConfig,
        transformers.MiniMaxM3VLProcessor,
        text={
            "head_dim": head_dim(sizes),
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 64,
            "shared_intermediate_size": 32,
            "rotary_dim": head_dim(sizes) // 2,
            "mlp_layer_types": ["dense"] + ["sparse"] * (sizes.num_layers - 1),
            "layer_types": ["full_attention"] * sizes.num_layers,
            "index_n_heads": 2,
            "index_head_dim": 8,
        },
        vision=sizes.vision() | {"image_size": 128, "patch_size": sizes.patch_size},
        processor={
            "image_processor": transformers.MiniMaxM3VLImageProcessor(**options),
            "video_processor": transformers.MiniMaxM3VLVideoProcessor(**options),
        },
        tied=False,
        projector_hidden_size=sizes.hidden_size,
        **ids(tokenizer, image_token_index=kind.IMAGE_TOKEN, video_token_index=kind.VIDEO_TOKEN),
    )


def muse_glimmer(sizes: Sizes) -> Recipe:
    """A multiplier before a cap on the logits."""
    tokens = (
        "<|patch|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|video|>",
        "<|vid_frame_separator|>",
        "<|vid_start|>",
        "<|vid_end|>",
    )
    tokenizer = tokenizer_of(sizes, "<|image_start|><|patch|><|image_end|>", *tokens)
    return recipe(
        sizes,
        tokenizer,
        transformers.MuseGlimmerConfig,
        transformers.MuseGlimmerProcessor,
        text={
            "head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "layer_rope_theta": [10_000.0] * sizes.num_layers,
            "final_logit_softcapping": 4.0,
        },
        vision=sizes.vision()
        | {
            "patch_size": sizes.patch_size,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
            "max_position_embeddings": 64,
            "layer_types": ["full_attention"] * sizes.vision_depth,
        },
        processor={
            "image_processor": transformers.MuseGlimmerImageProcessor(**patches(sizes)),
            "video_processor": transformers.MuseGlimmerVideoProcessor(**patches(sizes)),
        },
        tied=False,
        out_hidden_size=sizes.vision_hidden_size * 4,
        projector_hidden_size=sizes.hidden_size,
        **ids(tokenizer, image_token_id="<|patch|>", video_token_id="<|video|>"),
    )


def glm5_next(sizes: Sizes) -> Recipe:
    tokens = {"image_token_id": "<|image|>", "video_token_id": "<|video|>"}
    tokenizer = tokenizer_of(
        sizes, "<|begin_of_image|><|image|><|end_of_image|>", *tokens.values(), "<|begin_of_image|>", "<|end_of_image|>"
    )
    return recipe(
        sizes,
        tokenizer,
        transformers.Glm5NextConfig,
        transformers.Glm5NextProcessor,
        text={
            "num_key_value_heads": sizes.num_heads,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "index_topk": 64,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "hc_mult": 2,
        },
        vision=sizes.qwen_vision() | qwen3_tower(sizes) | {"image_size": 64, "projection_intermediate_size": 64},
        processor={
            "image_processor": transformers.Glm5NextImageProcessor(**patches(sizes)),
            "video_processor": transformers.Glm5NextVideoProcessor(**patches(sizes)),
        },
        **ids(tokenizer, **tokens),
    )


def cosmos3_edge(sizes: Sizes) -> Recipe:
    tokens = {**QWEN, **MARKS}
    tokenizer = tokenizer_of(sizes, "<|vision_start|><|image_pad|><|vision_end|>", *tokens.values())
    return recipe(
        sizes,
        tokenizer,
        transformers.Cosmos3EdgeConfig,
        transformers.Cosmos3EdgeProcessor,
        text={"head_dim": head_dim(sizes), "rope_parameters": mrope(sizes, 2)},
        vision=sizes.vision() | {"patch_size": sizes.patch_size, "num_patches": 64, "spatial_merge_size": 2},
        processor={
            "image_processor": transformers.Cosmos3EdgeImageProcessor(**patches(sizes) | {"temporal_patch_size": 1}),
            "video_processor": transformers.Cosmos3EdgeVideoProcessor(**patches(sizes) | {"temporal_patch_size": 1}),
        },
        tied=False,
        projector_hidden_size=64,
        **ids(tokenizer, **tokens),
    )
