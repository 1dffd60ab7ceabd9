"""InternVL as transformers has it, and Qianfan-OCR."""

from __future__ import annotations

import transformers

from boresight.demo.tiny.qwen import chatml, content
from boresight.demo.tiny.sizes import Recipe, Sizes
from boresight.demo.tiny.tokenizer import token_id, trained_tokenizer
from tests.tiny.recipes import head_dim, ids, recipe, square, tokenizer_of


def internvl(sizes: Sizes) -> Recipe:
    """InternViT over up to four tiles and a thumbnail, 2×2 patches shuffled into a token, on Qwen2."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = trained_tokenizer(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        named_tokens=named,
        vocab_size=sizes.vocab_size,
        chat_template=chatml(content("<IMG_CONTEXT>\n", "<video>\n")),
    )
    config = transformers.InternVLConfig(
        text_config=sizes.text(tokenizer, tied=True) | {"model_type": "qwen2"},
        vision_config=sizes.vision() | {"image_size": sizes.tile_size, "patch_size": sizes.patch_size},
        image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=sizes.tokens_per_tile,
        downsample_ratio=0.5,
        tie_word_embeddings=sizes.tied(True),
    )
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square(sizes), crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=square(sizes)),
        image_seq_length=sizes.tokens_per_tile,
        chat_template=tokenizer.chat_template,
    )
    return Recipe(config, processor, ("<|im_end|>", "<|endoftext|>"))


def qianfan_ocr(sizes: Sizes) -> Recipe:
    """The same on Qwen3, with a placeholder of its own in the chat template."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = tokenizer_of(sizes, "<image>\n", "<image>", named=named)
    return recipe(
        sizes,
        tokenizer,
        transformers.QianfanOCRConfig,
        transformers.QianfanOCRProcessor,
        text={"model_type": "qwen3", "head_dim": head_dim(sizes)},
        vision=sizes.vision()
        | {"image_size": [sizes.tile_size] * 2, "patch_size": [sizes.patch_size] * 2, "attention_bias": True},
        processor={
            "image_processor": transformers.GotOcr2ImageProcessor(
                size=square(sizes), crop_to_patches=True, max_patches=4
            ),
            "image_seq_length": sizes.tokens_per_tile,
        },
        image_seq_length=sizes.tokens_per_tile,
        **ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
