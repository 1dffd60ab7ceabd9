"""Gemma 3."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny import chat_templates


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
    head_dim = sizes.hidden_size // sizes.num_heads
    config = transformers.Gemma3Config(
        text_config=sizes.text(tokenizer, tied=True)
        | {
            "head_dim": head_dim,
            "query_pre_attn_scalar": head_dim,
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
    square = {"height": sizes.tile_size, "width": sizes.tile_size}
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size=square),
        tokenizer=tokenizer,
        image_seq_length=sizes.tokens_per_tile,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<eos>", "<end_of_turn>"))
