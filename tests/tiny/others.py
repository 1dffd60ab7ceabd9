"""Families of one kind each: image codes, cross-attention, indicators, towers of convolutions."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.llava import pinpoints
from tests.tiny.recipes import head_dim, ids, recipe, siglip, square, tokenizer_of


def aria(sizes: Sizes) -> Recipe:
    """Learned queries turn a tile into tokens; experts."""
    tokenizer = tokenizer_of(sizes, "<image>", named={"image_token": "<image>"})
    return recipe(
        sizes,
        tokenizer,
        transformers.AriaConfig,
        transformers.AriaProcessor,
        text={
            "model_type": "aria_text",
            "moe_num_experts": 4,
            "moe_topk": 2,
            "moe_num_shared_experts": 1,
            "intermediate_size": 32,
        },
        vision=sizes.vision() | {"model_type": "idefics3_vision", "image_size": 490, "patch_size": 70},
        processor={
            "image_processor": transformers.AriaImageProcessor(max_image_size=490, min_image_size=16),
            "size_conversion": {490: 4, 980: 4},
        },
        tied=False,
        projector_patch_to_query_dict={49: 4, 196: 4},
        **ids(tokenizer, image_token_index="<image>"),
    )


def emu3(sizes: Sizes) -> Recipe:
    """Images become ids of the vocabulary, in a tower with BatchNorm."""
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    codes = [f"<|visual token {number:06d}|>" for number in range(16)]
    tokenizer = tokenizer_of(sizes, "<image>", "<|extra_200|>", *codes, named=named, bos="<|extra_203|>")
    vocabulary = {**tokenizer.get_vocab()}
    return recipe(
        sizes,
        tokenizer,
        transformers.Emu3Config,
        transformers.Emu3Processor,
        text={"head_dim": head_dim(sizes), "attention_dropout": 0.0},
        vision={},
        processor={"image_processor": transformers.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64)},
        tied=False,
        vq_config={
            "codebook_size": 16,
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "hidden_size": 32,
            "temporal_downsample_factor": 1,
        },
        vocabulary_map={token: vocabulary[token] for token in (*named.values(), "<|extra_200|>", *codes)},
        image_token_id=vocabulary["<image>"],
    )


MLLAMA = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}<|end|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n{% endif %}"
)


def mllama(sizes: Sizes) -> Recipe:
    """Images are attended to in layers of their own, and have one token each."""
    tokenizer = tokenizer_of(
        sizes, "", "<|start|>", "<|end|>", "<|image|>", "<|python_tag|>", bos="<|begin|>", template=MLLAMA
    )
    return recipe(
        sizes,
        tokenizer,
        transformers.MllamaConfig,
        transformers.MllamaProcessor,
        text={"cross_attention_layers": [1], "num_hidden_layers": 3},
        vision={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_hidden_layers": sizes.vision_depth,
            "num_global_layers": 1,
            "attention_heads": sizes.vision_heads,
            "vision_output_dim": sizes.vision_hidden_size * 2,
            "intermediate_layers_indices": [0],
            "image_size": sizes.tile_size,
            "patch_size": sizes.patch_size,
            "max_num_tiles": 4,
        },
        processor={"image_processor": transformers.MllamaImageProcessor(size=square(sizes), max_image_tiles=4)},
        tied=False,
        **ids(tokenizer, image_token_index="<|image|>"),
    )


def llama4(sizes: Sizes) -> Recipe:
    """Attention within chunks, layers without positions, experts."""
    tokens = (
        "<|image|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    )
    tokenizer = tokenizer_of(sizes, "<|image|>", *tokens)
    return recipe(
        sizes,
        tokenizer,
        transformers.Llama4Config,
        transformers.Llama4Processor,
        text={
            "head_dim": head_dim(sizes),
            "intermediate_size_mlp": 64,
            "num_local_experts": 4,
            "attention_chunk_size": 16,
            "no_rope_layers": [1] * (sizes.num_layers - 1) + [0],
            "layer_types": ["chunked_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 4 * sizes.vision_hidden_size,
            "num_hidden_layers": sizes.vision_depth,
            "num_attention_heads": sizes.vision_heads,
            "image_size": sizes.tile_size,
            "patch_size": sizes.patch_size,
            "projector_input_dim": sizes.hidden_size,
            "projector_output_dim": sizes.hidden_size,
            "vision_output_dim": sizes.hidden_size,
        },
        processor={
            "image_processor": transformers.Llama4ImageProcessor(size=square(sizes), max_patches=4),
            "patch_size": sizes.patch_size,
        },
        tied=False,
        **ids(
            tokenizer, image_token_index="<|patch|>", boi_token_index="<|image_start|>", eoi_token_index="<|image_end|>"
        ),
    )


def ovis2(sizes: Sizes) -> Recipe:
    """Image tokens are mixtures of a visual vocabulary; indicators around tiles have embeddings of their own."""
    indicators = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = tokenizer_of(sizes, "<image>", "<image>", "<IMG_ATOM>", *indicators)
    return recipe(
        sizes,
        tokenizer,
        transformers.Ovis2Config,
        transformers.Ovis2Processor,
        text={"model_type": "qwen2"},
        vision=sizes.vision()
        | {
            "image_size": sizes.tile_size,
            "patch_size": sizes.patch_size,
            "vocab_size": 32,
            "hidden_stride": 2,
            "num_visual_indicator_tokens": 5,
        },
        processor={
            "image_processor": transformers.Ovis2ImageProcessor(size=square(sizes), max_patches=4),
            "image_seq_length": sizes.tokens_per_tile,
        },
        hidden_size=sizes.hidden_size,
        vocab_size=sizes.vocab_size,
        visual_indicator_token_ids=list(
            ids(tokenizer, **{f"n{place}": token for place, token in enumerate(indicators)}).values()
        ),
        **ids(tokenizer, image_token_id="<IMG_ATOM>"),
    )


def granite4_vision(sizes: Sizes) -> Recipe:
    """Features of several layers of the tower, added to several layers of the language model."""
    tokenizer = tokenizer_of(sizes, "<image>", "<image>")
    return recipe(
        sizes,
        tokenizer,
        transformers.Granite4VisionConfig,
        transformers.Granite4VisionProcessor,
        text={"model_type": "granite", "logits_scaling": 2.0, "attention_multiplier": 0.25},
        vision=siglip(sizes, image_size=2 * sizes.tile_size, patch_size=sizes.patch_size),
        processor={
            "image_processor": transformers.LlavaNextImageProcessor(
                size={"height": 64, "width": 64},
                crop_size={"height": 64, "width": 64},
                image_grid_pinpoints=[[2 * one, 2 * two] for one, two in pinpoints(sizes)],
            ),
            "patch_size": sizes.patch_size,
            "vision_feature_select_strategy": "full",
            "downsample_rate": "1/2",
        },
        tied=False,
        image_grid_pinpoints=[[2 * one, 2 * two] for one, two in pinpoints(sizes)],
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        use_spatial_sampling=False,
        projector_dropout=0.0,
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": sizes.vision_hidden_size,
            "encoder_hidden_size": sizes.vision_hidden_size,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        **ids(tokenizer, image_token_index="<image>"),
    )


def step3p7(sizes: Sizes) -> Recipe:
    """Experts, sliding layers, a tower of windows."""
    marks = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
    tokenizer = tokenizer_of(sizes, "<im_patch>", *marks)
    return recipe(
        sizes,
        tokenizer,
        transformers.Step3p7Config,
        transformers.Step3p7Processor,
        text={
            "head_dim": head_dim(sizes),
            "moe_intermediate_size": 32,
            "share_expert_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "query_pre_attn_scalar": head_dim(sizes),
            "num_sliding_attention_heads": sizes.num_heads,
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "mlp_layer_types": ["dense"] + ["sparse"] * (sizes.num_layers - 1),
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10_000.0}
                for kind in ("full_attention", "sliding_attention")
            },
        },
        vision=sizes.vision() | {"image_size": 64, "patch_size": 4, "max_position_embeddings": 256, "mlp_ratio": 2.0},
        processor={
            "image_processor": transformers.Step3p7ImageProcessor(
                size={"height": 64, "width": 64}, patch_size=32, vision_patch_size=4, downsampler_stride=4
            )
        },
        tied=False,
        **ids(tokenizer, image_token_id="<im_patch>"),
    )


def inkling_mm_model(sizes: Sizes) -> Recipe:
    """Logits divided by a width multiplier; convolutions with a state between layers."""
    tokens = ("<|unused_200054|>", "<|unused_200053|>", "<|content_image|>", "<|content_audio_input|>")
    tokenizer = tokenizer_of(sizes, "<|content_image|><|unused_200054|>", *tokens)
    text: dict[str, Any] = {
        "head_dim": head_dim(sizes),
        "swa_num_attention_heads": sizes.num_heads,
        "swa_num_key_value_heads": sizes.num_kv_heads,
        "swa_head_dim": head_dim(sizes),
        "sliding_window_size": 16,
        "d_rel": 4,
        "rel_extent": 64,
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "logits_mup_width_multiplier": 3.0,
        "layer_types": ["hybrid_sliding"] * (sizes.num_layers - 1) + ["hybrid"],
        "mlp_layer_types": ["dense"] + ["sparse"] * (sizes.num_layers - 1),
    }
    return recipe(
        sizes,
        tokenizer,
        transformers.InklingConfig,
        transformers.InklingProcessor,
        text=text,
        vision={
            "text_hidden_size": sizes.hidden_size,
            "hidden_size": sizes.vision_hidden_size,
            "n_layers": sizes.vision_depth,
            "num_attention_heads": sizes.vision_heads,
        },
        processor={
            "feature_extractor": transformers.InklingFeatureExtractor(),
            "image_processor": transformers.InklingImageProcessor(),
        },
        tied=False,
        audio_config={"text_hidden_size": sizes.hidden_size},
        **ids(
            tokenizer,
            image_token_id="<|unused_200054|>",
            audio_token_id="<|unused_200053|>",
            image_bos_token_id="<|content_image|>",
            audio_bos_token_id="<|content_audio_input|>",
        ),
    )
