"""The thinkers of Qwen-Omni: their classes have no base model, so hidden states are taken where the head receives them."""

from __future__ import annotations

from typing import Any

import transformers

from boresight.demo.tiny.qwen import mrope
from boresight.demo.tiny.sizes import Recipe, Sizes
from tests.tiny.patched import qwen2_5_tower, qwen_images
from tests.tiny.qwen import EXPERTS, deepstack, interleaved, qwen3_tower
from tests.tiny.recipes import head_dim, ids, recipe, tokenizer_of

OMNI = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}


def omni_thinker(
    sizes: Sizes, kind: str, text: dict[str, Any], vision: dict[str, Any], config: dict[str, str]
) -> Recipe:
    """The part of a Qwen-Omni model that reads and writes text, whose class has no base model."""
    tokenizer = tokenizer_of(sizes, "<|vision_bos|><|IMAGE|><|vision_eos|>", named=OMNI)
    audio = {
        "num_mel_bins": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
        "output_dim": sizes.hidden_size,
        "downsample_hidden_size": 16,
    }
    return recipe(
        sizes,
        tokenizer,
        getattr(transformers, f"{kind}ThinkerConfig"),
        getattr(transformers, f"{kind}Processor"),
        text=text,
        vision=vision,
        processor=qwen_images(sizes) | {"feature_extractor": transformers.WhisperFeatureExtractor(feature_size=16)},
        tied=False,
        audio_config=audio,
        **ids(tokenizer, **config),
    )


def qwen2_5_omni_thinker(sizes: Sizes) -> Recipe:
    config = {
        "image_token_index": "<|IMAGE|>",
        "video_token_index": "<|VIDEO|>",
        "audio_token_index": "<|AUDIO|>",
        "vision_start_token_id": "<|vision_bos|>",
        "audio_start_token_id": "<|audio_bos|>",
    }
    return omni_thinker(sizes, "Qwen2_5Omni", {"rope_parameters": mrope(sizes, 3)}, qwen2_5_tower(sizes), config)


def qwen3_omni_moe_thinker(sizes: Sizes) -> Recipe:
    config = {
        "image_token_id": "<|IMAGE|>",
        "video_token_id": "<|VIDEO|>",
        "audio_token_id": "<|AUDIO|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    }
    text = EXPERTS | {"head_dim": head_dim(sizes), "rope_parameters": interleaved(sizes)}
    return omni_thinker(
        sizes, "Qwen3OmniMoe", text, sizes.qwen_vision() | qwen3_tower(sizes) | deepstack(sizes), config
    )
