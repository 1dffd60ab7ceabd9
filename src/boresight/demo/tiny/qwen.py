"""The Qwen-VL line: dynamic resolution, 2×2 patches merged into an image token, M-RoPE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from boresight.demo.tiny import chat_templates
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def qwen_tokenizer(sizes: Sizes, chat_template: str) -> PreTrainedTokenizerFast:
    return trained_tokenizer(
        QWEN_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        vocab_size=sizes.vocab_size,
        chat_template=chat_template,
    )


def qwen_recipe(
    sizes: Sizes,
    config_class: Callable[..., PreTrainedConfig],
    processor_class: Callable[..., ProcessorMixin],
    video_processor_class: Callable[..., Any],
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    default_system: str | None,
) -> Recipe:
    """The Qwen-VL line: dynamic resolution, 2×2 patches merged into an image token, M-RoPE."""
    tokenizer = qwen_tokenizer(sizes, chat_templates.chatml(chat_templates.QWEN_VL, default_system=default_system))
    pixels: dict[str, Any] = {"shortest_edge": (2 * sizes.token_size) ** 2, "longest_edge": sizes.max_pixels}
    patches: dict[str, Any] = {"patch_size": sizes.patch_size, "temporal_patch_size": 2, "merge_size": 2}
    config = config_class(
        text_config=sizes.text(tokenizer, tied=True) | text,
        vision_config=sizes.qwen_vision() | vision,
        tie_word_embeddings=sizes.tied(True),
        **{
            f"{name}_token_id": token_id(tokenizer, f"<|{name}{suffix}|>")
            for name, suffix in (("image", "_pad"), ("video", "_pad"), ("vision_start", ""), ("vision_end", ""))
        },
    )
    processor = processor_class(
        image_processor=transformers.Qwen2VLImageProcessor(size=pixels, **patches),
        tokenizer=tokenizer,
        video_processor=video_processor_class(size=pixels, **patches),
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<|im_end|>", "<|endoftext|>"))


def mrope(sizes: Sizes, spatial: int) -> dict[str, Any]:
    """M-RoPE that gives `spatial` rotary frequencies each to height and width, and the rest to time."""
    sections = [sizes.half_head_dim - 2 * spatial, spatial, spatial]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}


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


def qwen2_5_vl(sizes: Sizes) -> Recipe:
    """Windows of 2×2 image tokens in all but the tower's last layer."""
    return qwen_recipe(
        sizes,
        transformers.Qwen2_5_VLConfig,
        transformers.Qwen2_5_VLProcessor,
        transformers.Qwen2VLVideoProcessor,
        text={"rope_parameters": mrope(sizes, 3 * sizes.half_head_dim // 8)},
        vision={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "out_hidden_size": sizes.hidden_size,
            "window_size": 2 * sizes.token_size,
            "fullatt_block_indexes": [sizes.vision_depth - 1],
        },
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


def qwen3_5(sizes: Sizes) -> Recipe:
    """Gated DeltaNet layers below one full-attention layer: the family that no attention mask can serve."""
    head_dim = sizes.hidden_size // sizes.num_heads
    return qwen_recipe(
        sizes,
        transformers.Qwen3_5Config,
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        text={
            "head_dim": head_dim,
            "rope_parameters": mrope(sizes, 5 * sizes.half_head_dim // 16)
            | {"mrope_interleaved": True, "partial_rotary_factor": 1.0},
            "layer_types": ["linear_attention"] * (sizes.num_layers - 1) + ["full_attention"],
            "linear_num_key_heads": sizes.num_kv_heads,
            "linear_num_value_heads": sizes.num_heads,
            "linear_key_head_dim": head_dim,
            "linear_value_head_dim": head_dim,
        },
        vision=qwen3_tower(sizes),
        default_system=None,
    )


def qwen3_tower(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": 2 * sizes.vision_hidden_size,
        "out_hidden_size": sizes.hidden_size,
        "num_position_embeddings": 64,
    }
