"""Phi-4-multimodal, which transformers lists among the models of several modalities, and not among those of images and text."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id
from tests.tiny.recipes import END, PAD, tokenizer_of


def phi4_multimodal(sizes: Sizes) -> Recipe:
    """Its language model embeds images and sounds itself, from tensors under names of their own."""
    named = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    tokenizer = tokenizer_of(sizes, "<|image|>", named=named)
    # Its processor counts 256 tokens of a tile, whatever the tile's size: 32×32 patches.
    size, patch = 64, 2
    tower = sizes.vision() | {"image_size": size, "crop_size": size}
    config = transformers.Phi4MultimodalConfig(
        **sizes.text(tokenizer, tied=True),
        original_max_position_embeddings=sizes.max_position_embeddings,
        vision_config=tower | {"patch_size": patch, "image_token_id": token_id(tokenizer, named["image_token"])},
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
            "audio_token_id": token_id(tokenizer, named["audio_token"]),
        },
    )
    processor = transformers.Phi4MultimodalProcessor(
        image_processor=transformers.Phi4MultimodalImageProcessor(
            size={"height": size, "width": size}, patch_size=patch, dynamic_hd=2
        ),
        audio_processor=transformers.Phi4MultimodalFeatureExtractor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, (END, PAD))
