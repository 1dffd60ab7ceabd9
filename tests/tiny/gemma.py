"""Gemma 3 and 4, and PaliGemma."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny import chat_templates
from tests.tiny.recipes import head_dim, ids, recipe, siglip, square, tokenizer_of


def gemma3(sizes: Sizes) -> Recipe:
    """Sliding layers below one full layer; the tokens of an image attend to one another in both directions."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = trained_tokenizer(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        named_tokens=named,
        vocab_size=sizes.vocab_size,
        chat_template=chat_templates.GEMMA,
    )
    config = transformers.Gemma3Config(
        text_config=sizes.text(tokenizer, tied=True)
        | {
            "head_dim": head_dim(sizes),
            "query_pre_attn_scalar": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
        },
        vision_config=sizes.vision()
        | {"image_size": sizes.tile_size, "patch_size": sizes.patch_size, "vision_use_head": False},
        boi_token_index=token_id(tokenizer, named["boi_token"]),
        eoi_token_index=token_id(tokenizer, named["eoi_token"]),
        image_token_index=token_id(tokenizer, named["image_token"]),
        mm_tokens_per_image=sizes.tokens_per_tile,
        tie_word_embeddings=sizes.tied(True),
    )
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size=square(sizes)),
        tokenizer=tokenizer,
        image_seq_length=sizes.tokens_per_tile,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<eos>", "<end_of_turn>"))


def paligemma(sizes: Sizes) -> Recipe:
    """A prompt whose tokens attend to one another in both directions, and an answer that does not."""
    return _paligemma(sizes, {"model_type": "gemma"})


def paligemma2(sizes: Sizes) -> Recipe:
    """The same on Gemma 2, which caps attention scores and logits."""
    return _paligemma(
        sizes,
        {
            "model_type": "gemma2",
            "query_pre_attn_scalar": head_dim(sizes),
            "sliding_window": 16,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 20.0,
        },
    )


def _paligemma(sizes: Sizes, text: dict[str, Any]) -> Recipe:
    tokenizer = tokenizer_of(sizes, "<image>", named={"image_token": "<image>"}, bos="<bos>")
    processor = transformers.SiglipImageProcessor(size=square(sizes))
    processor.image_seq_length = sizes.tokens_per_tile
    return recipe(
        sizes,
        tokenizer,
        transformers.PaliGemmaConfig,
        transformers.PaliGemmaProcessor,
        # Its processor adds tokens for 1,024 places and 128 segments.
        text=text | {"head_dim": head_dim(sizes), "vocab_size": len(tokenizer) + 1152},
        vision=siglip(sizes, projection_dim=sizes.hidden_size),
        processor={"image_processor": processor},
        projection_dim=sizes.hidden_size,
        **ids(tokenizer, image_token_index="<image>"),
    )


GEMMA4 = {
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}


def gemma4(sizes: Sizes, **text: Any) -> Recipe:
    """Sliding layers below one full layer, an embedding of its own in every layer."""
    tokenizer = tokenizer_of(sizes, "<|image|>", "<|video|>", named=GEMMA4, bos="<bos>")
    config = ids(
        tokenizer,
        boi_token_id="<|image>",
        eoi_token_id="<image|>",
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        boa_token_id="<|audio>",
        eoa_token_index="<audio|>",
        audio_token_id="<|audio|>",
    )
    return recipe(
        sizes,
        tokenizer,
        transformers.Gemma4Config,
        transformers.Gemma4Processor,
        text={
            "head_dim": head_dim(sizes),
            "global_head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "vocab_size_per_layer_input": sizes.vocab_size,
            "hidden_size_per_layer_input": 8,
            **text,
        },
        vision=sizes.vision()
        | {
            "num_key_value_heads": sizes.vision_heads,
            "head_dim": sizes.vision_hidden_size // sizes.vision_heads,
            "global_head_dim": sizes.vision_hidden_size // sizes.vision_heads,
            "patch_size": sizes.patch_size,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
            "default_output_length": 70,
        },
        processor={
            "feature_extractor": transformers.Gemma4AudioFeatureExtractor(),
            "image_processor": transformers.Gemma4ImageProcessor(
                patch_size=sizes.patch_size, max_soft_tokens=70, pooling_kernel_size=2
            ),
            "video_processor": transformers.Gemma4VideoProcessor(),
            "image_seq_length": 70,
        },
        audio_config=None,
        **config,
    )


def gemma4_kv(sizes: Sizes) -> Recipe:
    """The last layers attend to an earlier layer's keys and values."""
    return gemma4(
        replace(sizes, num_layers=4),
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=2,
    )


def gemma4_bi(sizes: Sizes) -> Recipe:
    """The tokens of an image attend to one another in both directions."""
    return gemma4(sizes, use_bidirectional_attention="vision")


def gemma4_unified(sizes: Sizes) -> Recipe:
    """No tower: patches are embedded as they are, and attend to one another in both directions."""
    tokenizer = tokenizer_of(sizes, "<|image|>", "<|video|>", named=GEMMA4, bos="<bos>")
    return recipe(
        sizes,
        tokenizer,
        transformers.Gemma4UnifiedConfig,
        transformers.Gemma4UnifiedProcessor,
        text={
            "head_dim": head_dim(sizes),
            "global_head_dim": head_dim(sizes),
            "sliding_window": 16,
            "layer_types": ["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "use_bidirectional_attention": "vision",
        },
        vision={
            "patch_size": sizes.patch_size,
            "pooling_kernel_size": 2,
            "mm_embed_dim": sizes.hidden_size,
            "mm_posemb_size": 64,
            "output_proj_dims": sizes.hidden_size,
        },
        processor={
            "feature_extractor": transformers.Gemma4UnifiedAudioFeatureExtractor(),
            "image_processor": transformers.Gemma4UnifiedImageProcessor(
                patch_size=sizes.patch_size, max_soft_tokens=70, pooling_kernel_size=2
            ),
            "video_processor": transformers.Gemma4UnifiedVideoProcessor(),
            "image_seq_length": 70,
        },
        audio_config=None,
        **ids(
            tokenizer,
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
            audio_token_id="<|audio|>",
        ),
    )
