"""Families whose vision towers are timm's."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.recipes import head_dim, ids, recipe, square, tokenizer_of

GEMMA3N = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
    "audio_token": "<audio_soft_token>",
}


def gemma3n(sizes: Sizes) -> Recipe:
    """MobileNet V5; several residual streams, an embedding of its own in every layer, the last layers' keys shared."""
    tokenizer = tokenizer_of(sizes, "<image_soft_token>", named=GEMMA3N, bos="<bos>")
    tower = {"channel_multiplier": 0.0625, "msfa_output_resolution": 2}
    return recipe(
        sizes,
        tokenizer,
        transformers.Gemma3nConfig,
        transformers.Gemma3nProcessor,
        text={
            "num_hidden_layers": 4,
            "head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": sizes.vocab_size,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
        # Placeholders are ids of the text's vocabulary here, so those of the towers' own begin after it.
        vision={"hidden_size": 2048, "vocab_size": 8, "vocab_offset": sizes.vocab_size, "model_args": tower},
        processor={
            "feature_extractor": transformers.Gemma3nAudioFeatureExtractor(),
            "image_processor": transformers.SiglipImageProcessor(size={"height": 64, "width": 64}),
            "image_seq_length": 4,
        },
        audio_config={
            "vocab_size": 8,
            "vocab_offset": sizes.vocab_size + 8,
            "hidden_size": 32,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": (8, 4),
        },
        vision_soft_tokens_per_image=4,
        **ids(
            tokenizer,
            boi_token_id="<start_of_image>",
            eoi_token_id="<end_of_image>",
            image_token_id="<image_soft_token>",
            boa_token_id="<start_of_audio>",
            eoa_token_id="<end_of_audio>",
            audio_token_id="<audio_soft_token>",
        ),
    )


def perception_lm(sizes: Sizes) -> Recipe:
    """Perception Encoder, whose tiles are pooled."""
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = tokenizer_of(sizes, "<|image|>", named=named)
    options = {"tile_size": sizes.tile_size, "max_num_tiles": 4, "size": square(sizes)}
    return recipe(
        sizes,
        tokenizer,
        transformers.PerceptionLMConfig,
        transformers.PerceptionLMProcessor,
        text={"model_type": "llama"},
        vision={
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {
                "embed_dim": sizes.vision_hidden_size,
                "img_size": (sizes.tile_size, sizes.tile_size),
                "patch_size": sizes.patch_size,
                "depth": sizes.vision_depth,
                "num_heads": sizes.vision_heads,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": (sizes.tile_size // sizes.patch_size,) * 2,
            },
        },
        processor={
            "image_processor": transformers.PerceptionLMImageProcessor(**options),
            "video_processor": transformers.PerceptionLMVideoProcessor(size=square(sizes)),
            "patch_size": sizes.patch_size,
            "pooling_ratio": 2,
        },
        projector_pooling_ratio=2,
        **ids(tokenizer, image_token_id="<|image|>", video_token_id="<|video|>"),
    )


def fast_vlm(sizes: Sizes) -> Recipe:
    """FastViT: convolutions below, and one token for 8×8 pixels here."""
    tokenizer = tokenizer_of(sizes, "<image>", "<image>")
    return recipe(
        sizes,
        tokenizer,
        transformers.FastVlmConfig,
        transformers.LlavaProcessor,
        text={"model_type": "qwen2"},
        vision={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 2 * sizes.vision_hidden_size,
            "model_args": {
                "inference_mode": True,
                "layers": (1, 1),
                "embed_dims": (sizes.vision_hidden_size // 2, sizes.vision_hidden_size),
                "mlp_ratios": (2, 2),
                "se_downsamples": (False, False),
                "downsamples": (False, True),
                "pos_embs": (None, None),
                "token_mixers": ("repmixer", "repmixer"),
                "lkc_use_act": True,
                "stem_use_scale_branch": False,
            },
        },
        processor={
            "image_processor": transformers.CLIPImageProcessor(
                size={"shortest_edge": sizes.tile_size}, crop_size=square(sizes)
            ),
            "patch_size": 8,
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
        },
        image_seq_length=(sizes.tile_size // 8) ** 2,
        **ids(tokenizer, image_token_index="<image>"),
    )
