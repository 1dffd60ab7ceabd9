"""Families whose language model has layers with a state beside those of attention: Qwen3.5 (dense and MoE) and LFM2-VL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig

from boresight.demo.tiny.qwen import chatml, content
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny.qwen import interleaved, qwen3_line


def alternating(sizes: Sizes, kind: str) -> list[str]:
    """Layers of this kind at even places, of full attention at odd ones: a state before attention and, with three layers, after it."""
    return [kind if place % 2 == 0 else "full_attention" for place in range(sizes.num_layers)]


def delta_net(sizes: Sizes) -> dict[str, Any]:
    """Gated DeltaNet between layers of full attention. As published, the recurrence has more value heads than key heads."""
    head_dim = sizes.hidden_size // sizes.num_heads
    return {
        "rope_parameters": interleaved(sizes) | {"partial_rotary_factor": 1.0},
        "layer_types": alternating(sizes, "linear_attention"),
        "linear_num_key_heads": sizes.num_kv_heads,
        "linear_num_value_heads": sizes.num_heads,
        "linear_key_head_dim": head_dim,
        "linear_value_head_dim": head_dim,
    }


def qwen3_5_line(sizes: Sizes, config_class: Callable[..., PreTrainedConfig], **text: Any) -> Recipe:
    return qwen3_line(sizes, config_class, delta_net(sizes) | text, {})


def qwen3_5(sizes: Sizes, layer_types: list[str] | None = None) -> Recipe:
    """Gated DeltaNet; layers alternate unless `layer_types` says otherwise."""
    return qwen3_5_line(
        sizes, transformers.Qwen3_5Config, layer_types=layer_types or alternating(sizes, "linear_attention")
    )


def qwen3_5_moe(sizes: Sizes, layer_types: list[str] | None = None) -> Recipe:
    """As `qwen3_5`, with four experts of which every token goes to two, and one for all tokens."""
    return qwen3_5_line(
        sizes,
        transformers.Qwen3_5MoeConfig,
        layer_types=layer_types or alternating(sizes, "linear_attention"),
        moe_intermediate_size=sizes.hidden_size,
        shared_expert_intermediate_size=sizes.hidden_size,
        num_experts=4,
        num_experts_per_tok=2,
    )


LFM2_TOKENS = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")


def lfm2_vl(sizes: Sizes) -> Recipe:
    """Short convolutions; a SigLIP 2 tower over an image of its own shape, or over up to four tiles and a thumbnail."""
    named = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = trained_tokenizer(
        ("<|pad|>", "<|startoftext|>", "<|im_start|>", "<|im_end|>", *LFM2_TOKENS, *tiles),
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        named_tokens=named,
        vocab_size=sizes.vocab_size,
        chat_template="{{ bos_token }}" + chatml(content("<image>")),
    )
    config = transformers.Lfm2VlConfig(
        text_config=sizes.text(tokenizer, tied=True)
        | {
            "layer_types": alternating(sizes, "conv"),
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
            # In published checkpoints; transformers does without, vLLM does not.
            "conv_dim": sizes.hidden_size,
            "block_dim": sizes.hidden_size,
        },
        vision_config=sizes.vision()
        | {
            "patch_size": sizes.patch_size,
            "num_patches": (sizes.tile_size // sizes.patch_size) ** 2,
            "vision_use_head": False,  # as published
        },
        image_token_id=token_id(tokenizer, "<image>"),
        projector_hidden_size=2 * sizes.hidden_size,
        tie_word_embeddings=sizes.tied(True),
    )
    processor = transformers.Lfm2VlProcessor(
        image_processor=transformers.Lfm2VlImageProcessor(
            encoder_patch_size=sizes.patch_size,
            tile_size=sizes.tile_size,
            max_tiles=4,
            min_image_tokens=2,
            max_image_tokens=sizes.tokens_per_tile,
        ),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<|im_end|>",))
